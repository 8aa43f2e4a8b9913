//! What `--format` takes: a small part of Go's templates, over JSON.
//!
//! ```text
//! text {{.Path.To.Value}} {{json .Path}} {{println .Path}} {{index .Path "key" 0}} {{.}}
//! {{range .List}}…{{end}} {{if .Path}}…{{else}}…{{end}}
//! ```
//! Within `range`, paths begin at the element, and `$` is the whole. There are no pipes and no variables.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// One piece of a template.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Print(Verb, Place),
    Range(Place, Vec<Node>),
    If(Place, Vec<Node>, Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verb {
    Plain,
    Json,
    Line,
}

/// Where a value is.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    /// Begins at the whole and not at the element.
    of_whole: bool,
    path: Vec<Key>,
}

#[derive(Debug, Clone, PartialEq)]
enum Key {
    Name(String),
    Number(usize),
}

/// A template that was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template(Vec<Node>);

impl Template {
    /// Reads one.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut rest = text;
        let (nodes, end) =
            parse_until_end(&mut rest).with_context(|| format!("cannot read the format {text:?}"))?;
        ensure!(end.is_empty(), "cannot read the format {text:?}: {{{{{end}}}}} without a beginning");
        Ok(Self(nodes))
    }

    /// Fills it in.
    pub(super) fn render(&self, value: &Value) -> anyhow::Result<String> {
        let mut out = String::new();
        render(&self.0, value, value, &mut out)?;
        Ok(out)
    }
}

/// Nodes up to `{{end}}`, `{{else}}` or the end of the text; which of them it was.
fn parse_until_end(rest: &mut &str) -> anyhow::Result<(Vec<Node>, String)> {
    let mut nodes = Vec::new();
    loop {
        let Some((before, after)) = rest.split_once("{{") else {
            if !rest.is_empty() {
                nodes.push(Node::Text(unescape(rest)));
            }
            *rest = "";
            return Ok((nodes, String::new()));
        };
        if !before.is_empty() {
            nodes.push(Node::Text(unescape(before)));
        }
        let (action, after) = after.split_once("}}").context("a {{ has no }}")?;
        *rest = after;
        let words = words(action)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            [end @ ("end" | "else")] => return Ok((nodes, (*end).to_owned())),
            ["range", place] => {
                let place = parse_place(place)?;
                let (body, end) = parse_until_end(rest)?;
                ensure!(end == "end", "a range has no {{{{end}}}}");
                nodes.push(Node::Range(place, body));
            }
            ["if", place] => {
                let place = parse_place(place)?;
                let (yes, end) = parse_until_end(rest)?;
                let no = match end.as_str() {
                    "else" => {
                        let (no, end) = parse_until_end(rest)?;
                        ensure!(end == "end", "an else has no {{{{end}}}}");
                        no
                    }
                    "end" => Vec::new(),
                    _ => bail!("an if has no {{{{end}}}}"),
                };
                nodes.push(Node::If(place, yes, no));
            }
            ["json", place] => nodes.push(Node::Print(Verb::Json, parse_place(place)?)),
            ["println", place] => nodes.push(Node::Print(Verb::Line, parse_place(place)?)),
            ["index", place, keys @ ..] => {
                let mut place = parse_place(place)?;
                place.path.extend(keys.iter().map(|key| match key.parse() {
                    Ok(number) => Key::Number(number),
                    Err(_) => Key::Name(key.trim_matches('"').to_owned()),
                }));
                nodes.push(Node::Print(Verb::Plain, place));
            }
            [place] => nodes.push(Node::Print(Verb::Plain, parse_place(place)?)),
            _ => bail!("{{{{{action}}}}} is none of .Path, json, println, index, range, if"),
        }
    }
}

/// Words of an action; what is quoted is one.
fn words(action: &str) -> anyhow::Result<Vec<String>> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for letter in action.chars() {
        match letter {
            '"' => {
                quoted = !quoted;
                words.last_mut().context("there is a word")?.push(letter);
            }
            letter if letter.is_whitespace() && !quoted => words.push(String::new()),
            letter => words.last_mut().context("there is a word")?.push(letter),
        }
    }
    ensure!(!quoted, "a quotation mark is missing in {{{{{action}}}}}");
    words.retain(|word| !word.is_empty());
    ensure!(!words.is_empty(), "there is an empty {{{{}}}}");
    Ok(words)
}

fn parse_place(text: &str) -> anyhow::Result<Place> {
    let (of_whole, path) = match text.strip_prefix('$') {
        Some(path) => (true, path),
        None => (false, text),
    };
    let Some(path) = path.strip_prefix('.').or(of_whole.then_some(path).filter(|path| path.is_empty()))
    else {
        bail!("{text:?} is no path: it begins with a full stop");
    };
    let path: Vec<Key> =
        path.split('.').filter(|part| !part.is_empty()).map(|part| Key::Name(part.to_owned())).collect();
    Ok(Place { of_whole, path })
}

/// Shells do not make tabs and ends of lines out of these.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn render(nodes: &[Node], whole: &Value, here: &Value, out: &mut String) -> anyhow::Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(verb, place) => {
                let value = find(place, whole, here)?;
                match verb {
                    Verb::Plain => show(value, out),
                    Verb::Json => out.push_str(&value.to_string()),
                    Verb::Line => {
                        show(value, out);
                        out.push('\n');
                    }
                }
            }
            Node::Range(place, body) => match find(place, whole, here)? {
                Value::Array(list) => list.iter().try_for_each(|each| render(body, whole, each, out))?,
                Value::Object(map) => map.values().try_for_each(|each| render(body, whole, each, out))?,
                Value::Null => {}
                other => bail!("cannot range over {other}"),
            },
            Node::If(place, yes, no) => {
                let holds = find(place, whole, here).map(is_something).unwrap_or(false);
                render(if holds { yes } else { no }, whole, here, out)?;
            }
        }
    }
    Ok(())
}

fn find<'a>(place: &Place, whole: &'a Value, here: &'a Value) -> anyhow::Result<&'a Value> {
    let mut value = if place.of_whole { whole } else { here };
    for key in &place.path {
        value = match key {
            Key::Name(name) => value.get(name).with_context(|| format!("there is no entry {name:?}"))?,
            Key::Number(number) => {
                value.get(number).with_context(|| format!("there is no element {number}"))?
            }
        };
    }
    Ok(value)
}

fn is_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(holds) => *holds,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As Go prints it.
fn show(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("<no value>"),
        Value::String(text) => out.push_str(text),
        Value::Array(list) => {
            out.push('[');
            for (number, each) in list.iter().enumerate() {
                out.push_str(if number == 0 { "" } else { " " });
                show(each, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push_str("map[");
            for (number, (name, each)) in map.iter().enumerate() {
                out.push_str(if number == 0 { "" } else { " " });
                out.push_str(name);
                out.push(':');
                show(each, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: &str) -> String {
        let value = json!({
            "State": {"Pid": 17, "Running": true, "Error": ""}, "Args": ["a", "b"],
            "Ports": {"80/tcp": [{"HostPort": "8080"}]},
            "Networks": {"bridge": {"IPAddress": "172.17.0.2"}},
        });
        Template::parse(template).and_then(|template| template.render(&value)).unwrap()
    }

    #[test]
    fn paths_are_filled_in() {
        assert_eq!(filled("{{.State.Pid}}"), "17");
        assert_eq!(filled("pid={{ .State.Pid }}\\t{{.State.Running}}"), "pid=17\ttrue");
        assert_eq!(filled("{{json .Args}} {{.Args}}"), "[\"a\",\"b\"] [a b]");
        assert_eq!(filled("{{range .Networks}}{{.IPAddress}}{{end}}"), "172.17.0.2");
        assert_eq!(filled("{{range .Args}}{{.}}={{$.State.Pid}};{{end}}"), "a=17;b=17;");
        assert_eq!(filled("{{(index .Args 1)}}".replace(['(', ')'], "").as_str()), "b");
        assert_eq!(filled("{{index .Ports \"80/tcp\" 0 \"HostPort\"}}"), "8080");
        assert_eq!(filled("{{if .State.Error}}bad{{else}}good{{end}}{{if .Args}}!{{end}}"), "good!");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let template = Template::parse("{{.State.Nothing}}").unwrap();
        assert!(template.render(&json!({"State": {}})).unwrap_err().to_string().contains("Nothing"));
        for text in ["{{", "{{.A", "{{end}}", "{{range .A}}", "{{if .A}}", "{{A}}", "{{}}", "{{foo .A .B}}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
