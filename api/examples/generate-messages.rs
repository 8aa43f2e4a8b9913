//! Writes the table of Kubernetes' protobuf messages, for `src/protobuf/messages.txt`:
//! `cargo run -p api --example generate-messages -- /path/to/kubectl > api/src/protobuf/messages.txt`.
//!
//! The facts come out of a `kubectl` of the version that is served (1.33 when this was written; an ELF file for
//! a 64-bit little-endian machine, not position-independent). A Go program carries a description of each type
//! that it may look at by reflection: for a struct the names, types and tags of its fields. The tags are what
//! Go's encoders of JSON and protobuf go by: field number, name in JSON, `omitempty`, `inline`; whether a field
//! is a pointer tells whether its zero says something. The form of these descriptions is that of Go 1.18 to
//! 1.25 (`internal/abi`).

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The packages whose messages are written, and the `apiVersion` that their kinds carry.
const PACKAGES: &[(&str, &str)] = &[
    ("k8s.io/api/core/v1", "v1"),
    ("k8s.io/api/admissionregistration/v1", "admissionregistration.k8s.io/v1"),
    ("k8s.io/api/apps/v1", "apps/v1"),
    ("k8s.io/api/authentication/v1", "authentication.k8s.io/v1"),
    ("k8s.io/api/authorization/v1", "authorization.k8s.io/v1"),
    ("k8s.io/api/autoscaling/v1", "autoscaling/v1"),
    ("k8s.io/api/autoscaling/v2", "autoscaling/v2"),
    ("k8s.io/api/batch/v1", "batch/v1"),
    ("k8s.io/api/certificates/v1", "certificates.k8s.io/v1"),
    ("k8s.io/api/coordination/v1", "coordination.k8s.io/v1"),
    ("k8s.io/api/discovery/v1", "discovery.k8s.io/v1"),
    ("k8s.io/api/events/v1", "events.k8s.io/v1"),
    ("k8s.io/api/flowcontrol/v1", "flowcontrol.apiserver.k8s.io/v1"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "meta.k8s.io/v1"),
    ("k8s.io/api/networking/v1", "networking.k8s.io/v1"),
    ("k8s.io/api/node/v1", "node.k8s.io/v1"),
    ("k8s.io/api/policy/v1", "policy/v1"),
    ("k8s.io/api/rbac/v1", "rbac.authorization.k8s.io/v1"),
    ("k8s.io/api/scheduling/v1", "scheduling.k8s.io/v1"),
    ("k8s.io/api/storage/v1", "storage.k8s.io/v1"),
];

/// Types with a form of their own.
const SHAPES: &[(&str, &str)] = &[
    ("k8s.io/apimachinery/pkg/api/resource.Quantity", "quantity"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1", "json"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime", "micro"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.Time", "time"),
    ("k8s.io/apimachinery/pkg/runtime.RawExtension", "raw"),
    ("k8s.io/apimachinery/pkg/util/intstr.IntOrString", "intstr"),
];

/// Messages of discovery and of requests' parameters, which are not sent as protobuf.
const LEFT_OUT: &[&str] = &[
    "APIGroup",
    "APIGroupList",
    "APIResource",
    "APIResourceList",
    "APIVersions",
    "CreateOptions",
    "Duration",
    "GetOptions",
    "ListOptions",
    "PatchOptions",
    "RootPaths",
    "TableOptions",
    "Timestamp",
    "UpdateOptions",
];

/// `kubectl` carries no types of this group, so these are taken from its `generated.proto` and `types.go` by hand.
const EXTENSIONS: &str = "\
[apiextensions.k8s.io/v1]
CustomResourceColumnDefinition name=1:text! type=2:text! format=3:text description=4:text priority=5:int32 jsonPath=6:text!
CustomResourceConversion strategy=1:text! webhook=2:WebhookConversion?
CustomResourceDefinition metadata=1:meta/ObjectMeta spec=2:CustomResourceDefinitionSpec! status=3:CustomResourceDefinitionStatus
CustomResourceDefinitionCondition type=1:text! status=2:text! lastTransitionTime=3:time reason=4:text message=5:text
CustomResourceDefinitionList metadata=1:meta/ListMeta items=2:[]CustomResourceDefinition!
CustomResourceDefinitionNames plural=1:text! singular=2:text shortNames=3:[]text kind=4:text! listKind=5:text categories=6:[]text
CustomResourceDefinitionSpec group=1:text! names=3:CustomResourceDefinitionNames! scope=4:text! versions=7:[]CustomResourceDefinitionVersion! conversion=9:CustomResourceConversion? preserveUnknownFields=10:bool
CustomResourceDefinitionStatus conditions=1:[]CustomResourceDefinitionCondition! acceptedNames=2:CustomResourceDefinitionNames! storedVersions=3:[]text!
CustomResourceDefinitionVersion name=1:text! served=2:bool! storage=3:bool! schema=4:CustomResourceValidation? subresources=5:CustomResourceSubresources? additionalPrinterColumns=6:[]CustomResourceColumnDefinition deprecated=7:bool deprecationWarning=8:text? selectableFields=9:[]SelectableField
CustomResourceSubresourceScale specReplicasPath=1:text! statusReplicasPath=2:text! labelSelectorPath=3:text?
CustomResourceSubresourceStatus
CustomResourceSubresources status=1:CustomResourceSubresourceStatus? scale=2:CustomResourceSubresourceScale?
CustomResourceValidation openAPIV3Schema=1:JSONSchemaProps?
ExternalDocumentation description=1:text url=2:text
JSONSchemaProps id=1:text $schema=2:text $ref=3:text? description=4:text type=5:text format=6:text title=7:text default=8:json? maximum=9:double? exclusiveMaximum=10:bool minimum=11:double? exclusiveMinimum=12:bool maxLength=13:int64? minLength=14:int64? pattern=15:text maxItems=16:int64? minItems=17:int64? uniqueItems=18:bool multipleOf=19:double? enum=20:[]json maxProperties=21:int64? minProperties=22:int64? required=23:[]text items=24:JSONSchemaPropsOrArray? allOf=25:[]JSONSchemaProps oneOf=26:[]JSONSchemaProps anyOf=27:[]JSONSchemaProps not=28:JSONSchemaProps? properties=29:{}JSONSchemaProps additionalProperties=30:JSONSchemaPropsOrBool? patternProperties=31:{}JSONSchemaProps dependencies=32:{}JSONSchemaPropsOrStringArray additionalItems=33:JSONSchemaPropsOrBool? definitions=34:{}JSONSchemaProps externalDocs=35:ExternalDocumentation? example=36:json? nullable=37:bool x-kubernetes-preserve-unknown-fields=38:bool? x-kubernetes-embedded-resource=39:bool x-kubernetes-int-or-string=40:bool x-kubernetes-list-map-keys=41:[]text x-kubernetes-list-type=42:text? x-kubernetes-map-type=43:text? x-kubernetes-validations=44:[]ValidationRule
JSONSchemaPropsOrArray schema=1:JSONSchemaProps? jSONSchemas=2:[]JSONSchemaProps
JSONSchemaPropsOrBool allows=1:bool schema=2:JSONSchemaProps?
JSONSchemaPropsOrStringArray schema=1:JSONSchemaProps? property=2:[]text
SelectableField jsonPath=1:text!
ServiceReference namespace=1:text! name=2:text! path=3:text? port=4:int32?
ValidationRule rule=1:text! message=2:text messageExpression=3:text reason=4:text? fieldPath=5:text optionalOldSelf=6:bool?
WebhookClientConfig service=1:ServiceReference? caBundle=2:bytes url=3:text?
WebhookConversion clientConfig=2:WebhookClientConfig? conversionReviewVersions=3:[]text!
";

/// Kinds of Go's types, as `internal/abi` numbers them.
mod kind {
    pub(super) const BOOL: u8 = 1;
    pub(super) const INT32: u8 = 5;
    pub(super) const INT64: u8 = 6;
    pub(super) const UINT8: u8 = 8;
    pub(super) const FLOAT64: u8 = 14;
    pub(super) const MAP: u8 = 21;
    pub(super) const POINTER: u8 = 22;
    pub(super) const SLICE: u8 = 23;
    pub(super) const STRING: u8 = 24;
    pub(super) const STRUCT: u8 = 25;
}

/// A Go program's file.
struct Program {
    bytes: Vec<u8>,
    /// Address, size and place in the file of each section, by name.
    sections: BTreeMap<String, (u64, u64, u64)>,
    /// Where the descriptions of types begin.
    types: u64,
}

/// A field of a struct.
struct Field {
    name: String,
    tag: String,
    ty: u64,
    is_embedded: bool,
}

impl Program {
    fn read(path: &str) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(format!("{path} is no ELF file of a 64-bit little-endian machine").into());
        }
        let mut program = Self { bytes, sections: BTreeMap::new(), types: 0 };
        let (table, size) = (program.number(0x28, 8)?, program.number(0x3a, 2)?);
        let (count, names) = (program.number(0x3c, 2)?, program.number(0x3e, 2)?);
        let names = program.number(table + names * size + 0x18, 8)?;
        for header in (0..count).map(|index| table + index * size) {
            let name = names + program.number(header, 4)?;
            let end = program.bytes[usize::try_from(name)?..].iter().position(|byte| *byte == 0);
            let name = program.slice(name, end.ok_or("a section without a name")? as u64)?;
            let name = String::from_utf8_lossy(name).into_owned();
            let place = (
                program.number(header + 0x10, 8)?,
                program.number(header + 0x20, 8)?,
                program.number(header + 0x18, 8)?,
            );
            program.sections.insert(name, place);
        }
        program.types = program.sections.get(".rodata").ok_or("the file has no section .rodata")?.0;
        Ok(program)
    }

    /// Bytes of the file.
    fn slice(&self, at: u64, length: u64) -> Result<&[u8]> {
        let at = usize::try_from(at)?;
        Ok(self.bytes.get(at..at + usize::try_from(length)?).ok_or("the file ends too early")?)
    }

    /// A number in the file.
    fn number(&self, at: u64, bytes: u64) -> Result<u64> {
        Ok(self.slice(at, bytes)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// The place in the file of an address.
    fn place(&self, address: u64) -> Result<u64> {
        let mut sections = self.sections.values();
        let found = sections.find(|(start, size, _)| *start > 0 && (*start..start + size).contains(&address));
        let (start, _, place) = found.ok_or_else(|| format!("nothing lies at {address:#x}"))?;
        Ok(address - start + place)
    }

    fn load(&self, address: u64, bytes: u64) -> Result<u64> {
        self.number(self.place(address)?, bytes)
    }

    /// Name and tag, and whether the field is embedded: flags, then length and text of each.
    fn name(&self, address: u64) -> Result<(String, String, bool)> {
        let mut at = self.place(address)?;
        let flags = self.number(at, 1)?;
        at += 1;
        let mut text = || -> Result<String> {
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = self.number(at, 1)?;
                at += 1;
                length |= (byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    break;
                }
            }
            at += length;
            Ok(String::from_utf8(self.slice(at - length, length)?.to_vec())?)
        };
        let name = text()?;
        let tag = if flags & 2 != 0 { text()? } else { String::new() };
        Ok((name, tag, flags & 8 != 0))
    }

    fn kind(&self, ty: u64) -> Result<u8> {
        Ok(u8::try_from(self.load(ty + 23, 1)? & 31)?)
    }

    /// The type that a pointer, slice or map leads to.
    fn element(&self, ty: u64) -> Result<u64> {
        self.load(ty + if self.kind(ty)? == kind::MAP { 56 } else { 48 }, 8)
    }

    /// Package and name of a type that has a name.
    fn named(&self, ty: u64) -> Result<Option<(String, String)>> {
        let flags = self.load(ty + 20, 1)?;
        if flags & 4 == 0 || flags & 1 == 0 {
            return Ok(None);
        }
        let (name, _, _) = self.name(self.types + self.load(ty + 40, 4)?)?;
        let name = name.rsplit('.').next().unwrap_or_default().to_owned();
        // What is about the kind of type stands before what is about its name.
        let own = match self.kind(ty)? {
            kind::STRUCT => 80,
            kind::POINTER | kind::SLICE => 56,
            kind::MAP => return Ok(Some((String::new(), name))),
            _ => 48,
        };
        let package = self.load(ty + own, 4)?;
        let package = if package == 0 { String::new() } else { self.name(self.types + package)?.0 };
        Ok(Some((package, name)))
    }

    fn fields(&self, ty: u64) -> Result<Vec<Field>> {
        let (first, count) = (self.load(ty + 56, 8)?, self.load(ty + 64, 8)?);
        let field = |index: u64| -> Result<Field> {
            let (name, tag, is_embedded) = self.name(self.load(first + index * 24, 8)?)?;
            Ok(Field { name, tag, ty: self.load(first + index * 24 + 8, 8)?, is_embedded })
        };
        (0..count).map(field).collect()
    }

    /// The structs of [`PACKAGES`] that pointers lead to.
    fn structs(&self) -> Result<BTreeMap<(String, String), u64>> {
        let (_, size, links) = *self.sections.get(".typelink").ok_or("the file has no section .typelink")?;
        let mut found = BTreeMap::new();
        for index in 0..size / 4 {
            let ty = self.types + self.number(links + index * 4, 4)?;
            if self.kind(ty)? != kind::POINTER {
                continue;
            }
            let target = self.element(ty)?;
            if self.kind(target)? == kind::STRUCT
                && let Some((package, name)) = self.named(target)?
                && let Some(version) = version_of(&package)
            {
                found.insert((version.to_owned(), name), target);
            }
        }
        Ok(found)
    }
}

fn version_of(package: &str) -> Option<&'static str> {
    PACKAGES.iter().find(|(own, _)| *own == package).map(|(_, version)| *version)
}

/// The value of a key in a struct tag.
fn tag<'a>(tags: &'a str, key: &str) -> Option<&'a str> {
    let rest = &tags[tags.find(&format!("{key}:\""))? + key.len() + 2..];
    rest.split('"').next()
}

/// How a field's type stands in the table; relative to the version that the message belongs to.
fn type_name(program: &Program, ty: u64, version: &str) -> Result<String> {
    let kind = program.kind(ty)?;
    if kind != kind::MAP
        && let Some((package, name)) = program.named(ty)?
    {
        let full = format!("{package}.{name}");
        if let Some((_, shape)) = SHAPES.iter().find(|(own, _)| *own == full) {
            return Ok((*shape).to_owned());
        }
        if name == "ExtraValue" {
            return Ok("texts".to_owned());
        }
        if kind == kind::STRUCT {
            let own = version_of(&package).ok_or_else(|| format!("{full} has no form that is known here"))?;
            return Ok(match own {
                own if own == version => name,
                "meta.k8s.io/v1" => format!("meta/{name}"),
                own => format!("{own}/{name}"),
            });
        }
    }
    let element = || program.element(ty);
    Ok(match kind {
        kind::BOOL => "bool".to_owned(),
        kind::INT32 => "int32".to_owned(),
        kind::INT64 => "int64".to_owned(),
        kind::FLOAT64 => "double".to_owned(),
        kind::STRING => "text".to_owned(),
        kind::SLICE if program.kind(element()?)? == kind::UINT8 => "bytes".to_owned(),
        kind::SLICE => format!("[]{}", type_name(program, element()?, version)?),
        kind::MAP => format!("{{}}{}", type_name(program, element()?, version)?),
        kind::POINTER => format!("{}?", type_name(program, element()?, version)?),
        other => return Err(format!("a type of kind {other} has no form that is known here").into()),
    })
}

/// One message's line; `None` if it is no message: a struct whose fields are not for protobuf.
fn line(program: &Program, version: &str, name: &str, ty: u64) -> Result<Option<String>> {
    let mut fields = BTreeMap::new();
    for field in program.fields(ty)? {
        let (json, protobuf) = (tag(&field.tag, "json").unwrap_or_default(), tag(&field.tag, "protobuf"));
        let Some(protobuf) = protobuf.filter(|protobuf| *protobuf != "-") else { continue };
        let number: u32 = protobuf.split(',').nth(1).ok_or("a tag without a number")?.parse()?;
        let (own, options) = json.split_once(',').unwrap_or((json, ""));
        let inline = field.is_embedded && own.is_empty();
        let own = if inline {
            ""
        } else if own.is_empty() {
            &field.name
        } else {
            own
        };
        let ty = type_name(program, field.ty, version)
            .map_err(|error| format!("{version} {name} {}: {error}", field.name))?;
        let is_required = !options.contains("omitempty") && !inline && !ty.ends_with('?');
        let required = if is_required { "!" } else { "" };
        fields.insert(number, format!(" {own}={number}:{ty}{required}"));
    }
    Ok((!fields.is_empty()).then(|| name.to_owned() + &fields.into_values().collect::<String>()))
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).ok_or("usage: generate-messages KUBECTL")?;
    let program = Program::read(&path)?;
    let structs = program.structs()?;
    let shapes: BTreeSet<&str> = SHAPES.iter().filter_map(|(name, _)| name.rsplit('.').next()).collect();
    let mut out = String::from("# Written by examples/generate-messages.rs; table.rs tells the form.\n");
    for (_, version) in PACKAGES {
        writeln!(out, "[{version}]")?;
        for ((own, name), ty) in &structs {
            if own == version
                && !shapes.contains(name.as_str())
                && !LEFT_OUT.contains(&name.as_str())
                && let Some(line) = line(&program, version, name, *ty)?
            {
                writeln!(out, "{line}")?;
            }
        }
    }
    print!("{out}{EXTENSIONS}");
    Ok(())
}
