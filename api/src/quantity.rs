//! Exact resource quantities.
//!
//! Owns Kubernetes' fixed-point numbers (`100m`, `1.5Gi`, `2e3`): reading, canonical writing, comparing and
//! adding. Promises no floating point and no loss: an amount is held in billionths, capped at 2^63-1 as
//! Kubernetes caps it; finer amounts are rounded away from zero. Knows nothing of what a quantity measures.

use std::cmp::Ordering;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

const NANOS_PER_UNIT: i128 = 1_000_000_000;
const NANOS_PER_MILLI: i128 = 1_000_000;
const NANOS_MAX: i128 = i64::MAX as i128 * NANOS_PER_UNIT;
/// More digits than any amount below the cap can need; longer texts are cut short before arithmetic.
const DIGITS_MAX: usize = 64;

/// Which suffixes an amount is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `n u m k M G T P E`.
    #[default]
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`.
    BinarySi,
    /// `e3`.
    DecimalExponent,
}

/// An amount. Equality and order speak of the amount, not of how it was written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuantityError {
    /// The text has not the form of a quantity.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The suffix is none of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, ParseQuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseQuantityError::Format);
        }
        let scale = Scale::parse(suffix)?;
        let (nanos, format) = scale.apply(whole, fraction);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// So many whole units.
    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * NANOS_PER_UNIT, format }
    }

    /// So many thousandths (milli-CPUs).
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * NANOS_PER_MILLI, format: Format::DecimalSi }
    }

    /// Units, rounded away from zero.
    pub fn value(&self) -> i64 {
        self.scaled(NANOS_PER_UNIT)
    }

    /// Thousandths, rounded away from zero; capped.
    pub fn milli_value(&self) -> i64 {
        self.scaled(NANOS_PER_MILLI)
    }

    fn scaled(&self, nanos_per: i128) -> i64 {
        let whole = self.nanos / nanos_per;
        let rest = (self.nanos % nanos_per).signum();
        let rounded = whole + rest;
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    /// Billionths, exactly.
    pub fn nano_value(&self) -> i128 {
        self.nanos
    }

    /// Whether nothing is meant.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether less than nothing is meant.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount is a whole number of units.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANOS_PER_UNIT == 0
    }

    /// How the amount is written.
    pub fn format(&self) -> Format {
        self.format
    }
}

/// What a suffix multiplies by.
enum Scale {
    Decimal(i32, Format),
    Binary(u32),
}

impl Scale {
    fn parse(suffix: &str) -> Result<Self, ParseQuantityError> {
        let decimal = |exponent| Ok(Self::Decimal(exponent, Format::DecimalSi));
        match suffix {
            "" => decimal(0),
            "n" => decimal(-9),
            "u" => decimal(-6),
            "m" => decimal(-3),
            "k" => decimal(3),
            "M" => decimal(6),
            "G" => decimal(9),
            "T" => decimal(12),
            "P" => decimal(15),
            "E" => decimal(18),
            "Ki" => Ok(Self::Binary(10)),
            "Mi" => Ok(Self::Binary(20)),
            "Gi" => Ok(Self::Binary(30)),
            "Ti" => Ok(Self::Binary(40)),
            "Pi" => Ok(Self::Binary(50)),
            "Ei" => Ok(Self::Binary(60)),
            _ => {
                let known = suffix.bytes().all(|b| b"eEinumkKMGTP+-0123456789".contains(&b));
                if !known {
                    return Err(ParseQuantityError::Format);
                }
                let digits = suffix.strip_prefix(['e', 'E']).ok_or(ParseQuantityError::Suffix)?;
                let exponent: i32 = digits.parse().map_err(|_| ParseQuantityError::Suffix)?;
                Ok(Self::Decimal(exponent, Format::DecimalExponent))
            }
        }
    }

    /// The amount of `whole.fraction` times the scale, in nanos.
    fn apply(&self, whole: &str, fraction: &str) -> (i128, Format) {
        let whole = whole.trim_start_matches('0');
        let fraction = fraction.trim_end_matches('0');
        match *self {
            Self::Decimal(exponent, format) => (decimal_nanos(whole, fraction, exponent), format),
            Self::Binary(shift) => {
                let nanos = binary_nanos(whole, fraction, shift);
                let small = nanos > 0 && nanos < NANOS_PER_UNIT;
                (nanos, if small { Format::DecimalSi } else { Format::BinarySi })
            }
        }
    }
}

/// The digits of `whole.fraction`, moved by `exponent` + 9 places; what lies below the point rounds up.
fn decimal_nanos(whole: &str, fraction: &str, exponent: i32) -> i128 {
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    if digits.iter().all(|d| *d == b'0') {
        return 0;
    }
    let point =
        i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(i64::from(exponent)).saturating_add(9);
    let mut nanos: i128 = 0;
    let mut at: i64 = 0;
    while at < point {
        let digit = usize::try_from(at).ok().and_then(|i| digits.get(i)).copied();
        nanos = nanos * 10 + i128::from(digit.unwrap_or(b'0') - b'0');
        if nanos > NANOS_MAX {
            return NANOS_MAX;
        }
        at += 1;
    }
    let below = usize::try_from(point.max(0)).unwrap_or(usize::MAX);
    let remainder = digits.iter().skip(below).any(|d| *d != b'0');
    (nanos + i128::from(remainder)).min(NANOS_MAX)
}

fn binary_nanos(whole: &str, fraction: &str, shift: u32) -> i128 {
    let mut units: i128 = 0;
    for digit in whole.bytes() {
        units = units * 10 + i128::from(digit - b'0');
        if units > i128::from(i64::MAX) {
            return NANOS_MAX;
        }
    }
    let whole_nanos = units.saturating_mul(1_i128 << shift).saturating_mul(NANOS_PER_UNIT);
    if whole_nanos >= NANOS_MAX {
        return NANOS_MAX;
    }
    // fraction * 2^shift * 10^9, digit by digit from the least significant: each step divides by ten, and
    // whatever falls below a nano anywhere rounds the whole up.
    let kept = &fraction.as_bytes()[..fraction.len().min(DIGITS_MAX)];
    let scale: i128 = (1_i128 << shift) * NANOS_PER_UNIT;
    let (mut nanos, mut remainder) = (0_i128, fraction.len() > kept.len());
    let mut rest = Vec::with_capacity(kept.len());
    rest.extend(kept.iter().map(|d| i128::from(d - b'0')));
    // Long multiplication: carry the digits after the point times `scale` into the whole part.
    let mut carry: i128 = 0;
    for digit in rest.iter_mut().rev() {
        let product = *digit * scale + carry;
        carry = product / 10;
        remainder |= product % 10 != 0;
    }
    nanos += carry;
    (whole_nanos + nanos + i128::from(remainder)).min(NANOS_MAX)
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> for Quantity {
    type Error = ParseQuantityError;

    fn try_from(
        typed: &k8s_openapi::apimachinery::pkg::api::resource::Quantity,
    ) -> Result<Self, Self::Error> {
        Self::parse(&typed.0)
    }
}

impl From<Quantity> for k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    fn from(quantity: Quantity) -> Self {
        Self(quantity.to_string())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let units = self.nanos / NANOS_PER_UNIT;
        let binary = self.format == Format::BinarySi && self.is_integer() && units.abs() >= 1024;
        if binary {
            let (mut number, mut power) = (units, 0);
            while number % 1024 == 0 && power < 6 {
                number /= 1024;
                power += 1;
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (mut number, mut exponent) = (self.nanos, -9_i32);
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        write!(f, "{number}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    /// The sum, written as the first operand is, unless that is zero.
    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nanos: -self.nanos, format: self.format }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(quantities: I) -> Self {
        quantities.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).unwrap().to_string()
    }

    #[test]
    fn the_canonical_form_is_kubernetes_own() {
        for (text, expected) in [
            ("0", "0"),
            ("0m", "0"),
            ("1", "1"),
            ("+1", "1"),
            ("-1.5", "-1500m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("100m", "100m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1000Ki", "1000Ki"),
            ("0.5Ki", "512"),
            ("1Ki", "1Ki"),
            ("1023", "1023"),
            ("0.1Mi", "104857600m"),
            ("1000", "1k"),
            ("1000000", "1M"),
            ("1e3", "1e3"),
            ("12e2", "1200"),
            ("1E", "1E"),
            ("1E3", "1e3"),
            ("1e-3", "1e-3"),
            ("100n", "100n"),
            ("0.1n", "1n"),
            ("0.00001u", "1n"),
            ("1.1n", "2n"),
            ("-0.1n", "-1n"),
            ("9Ei", "9223372036854775807"),
            ("99999999999999999999999", "9223372036854775807"),
            ("1e99", "9223372036854775807"),
            ("0e99", "0"),
            ("0000000000000000000000000000000000000000000001k", "1k"),
            ("7Ei", "7Ei"),
            ("0.0000000001Ki", "103n"),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
        }
    }

    #[test]
    fn rounding_is_away_from_zero() {
        let q = Quantity::parse("100m").unwrap();
        assert_eq!((q.value(), q.milli_value()), (1, 100));
        let q = Quantity::parse("1500u").unwrap();
        assert_eq!((q.value(), q.milli_value()), (1, 2));
        assert_eq!(Quantity::parse("-1.5").unwrap().value(), -2);
        assert_eq!(Quantity::parse("8Ei").unwrap().milli_value(), i64::MAX);
        assert_eq!(Quantity::parse("128Mi").unwrap().value(), 134_217_728);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "x", "1.2.3", ".", "-", "1 ", "1Zi", "1_000", "0x10"] {
            assert_eq!(Quantity::parse(text), Err(ParseQuantityError::Format), "{text}");
        }
        for text in ["1ki", "1mm", "1i", "1e", "1iM"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
        assert_eq!(Quantity::parse("1ee"), Err(ParseQuantityError::Suffix));
    }

    #[test]
    fn sums_and_order_speak_of_the_amount() {
        let sum: Quantity = ["500m", "1", "0.25"].iter().map(|t| Quantity::parse(t).unwrap()).sum();
        assert_eq!(sum.to_string(), "1750m");
        assert!(Quantity::parse("1Ki").unwrap() > Quantity::parse("1k").unwrap());
        assert_eq!(Quantity::parse("1").unwrap(), Quantity::parse("1000m").unwrap());
        assert_eq!((Quantity::ZERO + Quantity::parse("1Gi").unwrap()).to_string(), "1Gi");
        assert_eq!(
            (Quantity::parse("1Gi").unwrap() - Quantity::parse("512Mi").unwrap()).to_string(),
            "512Mi"
        );
    }

    proptest! {
        #[test]
        fn canonical_texts_mean_the_same(
            whole in 0u64..10_000_000, fraction in 0u32..1000,
            suffix in prop::sample::select(vec!["", "m", "k", "M", "G", "Ki", "Mi", "Gi", "e2", "E-1"])
        ) {
            let quantity = Quantity::parse(&format!("{whole}.{fraction:03}{suffix}")).unwrap();
            let written = quantity.to_string();
            let again = Quantity::parse(&written).unwrap();
            prop_assert_eq!(again, quantity);
            prop_assert_eq!(again.to_string(), written);
        }

        #[test]
        fn addition_agrees_with_whole_numbers(a in 0i64..1 << 40, b in 0i64..1 << 40) {
            let sum = Quantity::parse(&a.to_string()).unwrap() + Quantity::parse(&format!("{b}Ki")).unwrap();
            prop_assert_eq!(sum.value(), a + b * 1024);
        }

        #[test]
        fn no_text_panics(text in "[-+]?[0-9.eEinumkKMGTP]{0,30}") {
            let _ = Quantity::parse(&text);
        }
    }
}
