//! Resource quantities: `100m`, `1.5Gi`, `2e3`.
//!
//! Exact: a value is a whole number of billionths, held in an `i128`. The grammar, the limits (no finer
//! than a billionth, rounded up; no larger than 2^63 - 1) and the canonical form are those of
//! `k8s.io/apimachinery/pkg/api/resource`.

use std::{cmp::Ordering, fmt, str::FromStr};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// Largest magnitude, as upstream.
const MAX: i128 = i64::MAX as i128 * NANO;

/// An amount of a resource, and the suffix family it was written in.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Family of suffixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `m`, `k`, `M`, …
    DecimalSi,
    /// `Ki`, `Mi`, …
    BinarySi,
    /// `e3`, `E6`, …
    DecimalExponent,
}

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not of the form number and suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is followed by something that is no suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// What a suffix multiplies by.
enum Scale {
    Decimal(i32, Format),
    Binary(u32),
}

fn scale(suffix: &str) -> Option<Scale> {
    let decimal = |power| Some(Scale::Decimal(power, Format::DecimalSi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => Some(Scale::Binary(10)),
        "Mi" => Some(Scale::Binary(20)),
        "Gi" => Some(Scale::Binary(30)),
        "Ti" => Some(Scale::Binary(40)),
        "Pi" => Some(Scale::Binary(50)),
        "Ei" => Some(Scale::Binary(60)),
        _ => {
            let power = suffix.strip_prefix(['e', 'E'])?;
            let digits = power.strip_prefix(['+', '-']).unwrap_or(power);
            let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            // A power beyond four digits is out of range whatever the number is.
            (whole && digits.len() <= 4)
                .then(|| power.parse().ok())
                .flatten()
                .map(|p| Scale::Decimal(p, Format::DecimalExponent))
        }
    }
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number, printed with decimal suffixes.
    pub const fn from_whole(value: i64) -> Self {
        Self { nanos: value as i128 * NANO, format: Format::DecimalSi }
    }

    /// Thousandths, printed with decimal suffixes: `from_millis(1500)` is `1500m`.
    pub const fn from_millis(value: i64) -> Self {
        Self { nanos: value as i128 * 1_000_000, format: Format::DecimalSi }
    }

    /// Bytes, printed with binary suffixes.
    pub const fn from_bytes(value: i64) -> Self {
        Self { nanos: value as i128 * NANO, format: Format::BinarySi }
    }

    /// Rounded up to a whole number.
    pub fn value(&self) -> i64 {
        saturate(div_up(self.nanos, NANO))
    }

    /// Thousandths, rounded up.
    pub fn millis(&self) -> i64 {
        saturate(div_up(self.nanos, 1_000_000))
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// `count` times as much; held at the limits.
    #[must_use]
    pub fn times(self, count: i64) -> Self {
        Self { nanos: clamp(self.nanos.saturating_mul(i128::from(count))), format: self.format }
    }

    /// Zero takes the other's format, as upstream: a sum that starts from nothing prints like its parts.
    fn format_with(self, other: Self) -> Format {
        if self.nanos == 0 { other.format } else { self.format }
    }

    fn decimal(&self, f: &mut fmt::Formatter<'_>, exponent_form: bool) -> fmt::Result {
        let (mut mantissa, mut power) = (self.nanos, -9);
        while mantissa % 1000 == 0 && power < 18 {
            mantissa /= 1000;
            power += 3;
        }
        if exponent_form {
            return match power {
                0 => write!(f, "{mantissa}"),
                _ => write!(f, "{mantissa}e{power}"),
            };
        }
        let suffix = match power {
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
        write!(f, "{mantissa}{suffix}")
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn clamp(nanos: i128) -> i128 {
    nanos.clamp(-MAX, MAX)
}

/// Rounds away from zero, as upstream does for parts finer than the scale.
fn div_up(value: i128, by: i128) -> i128 {
    let rest = value % by;
    value / by
        + if rest > 0 {
            1
        } else if rest < 0 {
            -1
        } else {
            0
        }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or_default()),
            Some(b'+') => (false, text.get(1..).unwrap_or_default()),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError::Format);
        }
        let scale = scale(suffix).ok_or(ParseError::Suffix)?;
        let (magnitude, format) = magnitude(whole, fraction, &scale);
        let nanos = clamp(magnitude);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// Billionths of `whole.fraction` times the scale, rounded up, at most [`MAX`].
fn magnitude(whole: &str, fraction: &str, scale: &Scale) -> (i128, Format) {
    // Decimal digits and the power of ten of the last one; leading zeros carry nothing.
    let digits: String = format!("{whole}{fraction}").trim_start_matches('0').to_owned();
    let (power, format) = match scale {
        Scale::Decimal(power, format) => (*power, *format),
        Scale::Binary(_) => (0, Format::BinarySi),
    };
    let factor = match scale {
        Scale::Binary(bits) => 1_i128 << bits,
        Scale::Decimal(..) => 1,
    };
    if digits.is_empty() {
        return (0, format);
    }
    let fraction_digits = i64::try_from(fraction.len()).unwrap_or(i64::MAX);
    let shift = i64::from(power).saturating_add(9).saturating_sub(fraction_digits);
    (shifted(&digits, shift, factor), format)
}

/// `digits * 10^shift * factor`, rounded up, at most [`MAX`].
fn shifted(digits: &str, shift: i64, factor: i128) -> i128 {
    let length = i64::try_from(digits.len()).unwrap_or(i64::MAX);
    if length.saturating_add(shift) > 30 {
        return MAX;
    }
    let keep = |s: &str| s.bytes().fold(0_i128, |n, b| n * 10 + i128::from(b.saturating_sub(b'0')));
    if shift >= 0 {
        let power = u32::try_from(shift).ok().and_then(|s| 10_i128.checked_pow(s));
        return power
            .and_then(|p| keep(digits).checked_mul(p))
            .and_then(|n| n.checked_mul(factor))
            .unwrap_or(MAX)
            .min(MAX);
    }
    // Digits finer than a billionth matter after a binary factor: 18 of them are kept (2^60 < 10^19, so
    // what is dropped is less than a billionth), the rest rounds up.
    let drop = usize::try_from(-shift).unwrap_or(usize::MAX);
    let kept_fraction = drop.min(18);
    let (kept, tail) = digits.split_at(digits.len().saturating_sub(drop - kept_fraction));
    let (whole, fine) = kept.split_at(digits.len().saturating_sub(drop));
    let rest = tail.bytes().any(|b| b != b'0');
    let divisor = 10_i128.pow(u32::try_from(kept_fraction).unwrap_or(18));
    let (quotient, remainder) = (keep(whole), keep(fine));
    let fine = remainder.checked_mul(factor).map_or(MAX, |n| div_up(n + i128::from(rest), divisor));
    quotient.checked_mul(factor).and_then(|n| n.checked_add(fine)).unwrap_or(MAX).min(MAX)
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that needs none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        match self.format {
            Format::BinarySi if self.is_whole() && self.nanos.abs() >= 1024 * NANO => {
                let (mut mantissa, mut step) = (self.nanos / NANO, 0);
                while mantissa % 1024 == 0 && step < 6 {
                    mantissa /= 1024;
                    step += 1;
                }
                let suffix = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].get(step).copied().unwrap_or_default();
                write!(f, "{mantissa}{suffix}")
            }
            Format::DecimalExponent => self.decimal(f, true),
            Format::BinarySi | Format::DecimalSi => self.decimal(f, false),
        }
    }
}

/// The sum, held at the limits, printed as the left side is; zero takes the right side's format.
impl std::ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { nanos: clamp(self.nanos + other.nanos), format: self.format_with(other) }
    }
}

/// The difference, as [`std::ops::Add`].
impl std::ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { nanos: clamp(self.nanos - other.nanos), format: self.format_with(other) }
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

impl TryFrom<&Text> for Quantity {
    type Error = ParseError;

    fn try_from(text: &Text) -> Result<Self, ParseError> {
        text.0.parse()
    }
}

impl From<Quantity> for Text {
    fn from(quantity: Quantity) -> Self {
        Text(quantity.to_string())
    }
}

/// Rewrites a text in its canonical form; what is no quantity stays, for validation to name.
pub fn canonicalize(text: &mut Text) {
    if let Ok(quantity) = Quantity::try_from(&*text) {
        *text = quantity.into();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().unwrap().to_string()
    }

    #[test]
    fn prints_the_canonical_form() {
        for (text, want) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("+1", "1"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1k", "1k"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1023Ki", "1023Ki"),
            ("0.5Mi", "512Ki"),
            ("100e3", "100e3"),
            ("1e3", "1e3"),
            ("1E6", "1e6"),
            ("1E", "1E"),
            ("12E-3", "12e-3"),
            ("1n", "1n"),
            ("0.5n", "1n"),
            ("-0.5n", "-1n"),
            ("1u", "1u"),
            ("128Mi", "128Mi"),
            ("64Mi", "64Mi"),
            ("250m", "250m"),
            ("2", "2"),
            ("-1.5Gi", "-1536Mi"),
            ("0.0001Ki", "102400u"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999", "9223372036854775807"),
            ("100Ei", "9223372036854775807"),
            ("1e9999", "9223372036854775807e0"),
        ] {
            let want = want.strip_suffix("e0").unwrap_or(want);
            assert_eq!(canonical(text), want, "{text}");
        }
    }

    #[test]
    fn many_digits_behind_the_point_round_up() {
        let many = format!("12345678901234.{}", "1".repeat(105));
        assert_eq!(canonical(&many), "12345678901234111111112n");
        assert_eq!(canonical(&format!("0.{}1", "0".repeat(60))), "1n");
        assert_eq!(canonical(&format!("9223372036854775807.{}", "9".repeat(60))), "9223372036854775807");
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in ["", ".", "-", "1.2.3", "abc", "Ki", " 1", "--1"] {
            assert_eq!(text.parse::<Quantity>().unwrap_err(), ParseError::Format, "{text}");
        }
        for text in ["1 ", "1x", "1kk", "1mi", "1e", "1e+", "1e1.5", "1e99999", "1KiB", "1µ"] {
            assert_eq!(text.parse::<Quantity>().unwrap_err(), ParseError::Suffix, "{text}");
        }
    }

    #[test]
    fn compares_and_adds_across_formats() {
        let q = |t: &str| t.parse::<Quantity>().unwrap();
        assert_eq!(q("1Ki"), q("1024"));
        assert!(q("1000m") < q("1001m"));
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((Quantity::ZERO + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("1") - q("250m")).to_string(), "750m");
        assert_eq!(q("1.1").value(), 2);
        assert_eq!(q("0.0015").millis(), 2);
        assert_eq!(q("100m").times(3).to_string(), "300m");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn never_panics_near_the_grammar(text in "[+-]?[0-9.]{0,140}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,6}") {
            if let Ok(q) = text.parse::<Quantity>() {
                prop_assert_eq!(q.to_string().parse::<Quantity>().unwrap(), q);
            }
        }

        #[test]
        fn canonical_form_is_a_fixed_point(value in any::<i64>(), suffix in prop::sample::select(vec!["", "m", "k", "Ki", "Mi", "u", "n", "e3"])) {
            let once = canonical(&format!("{value}{suffix}"));
            prop_assert_eq!(canonical(&once), once);
        }
    }
}
