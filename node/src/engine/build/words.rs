//! Words of a Dockerfile: variables and quotes (Dockerfile reference, "Environment replacement").

/// Why a word cannot be read.
pub(super) type Problem = String;

/// Takes quotes away and puts variables in. A variable that is not set is empty.
pub(super) fn expand(
    text: &str,
    escape: char,
    value: &dyn Fn(&str) -> Option<String>,
) -> Result<String, Problem> {
    let mut reader = Reader { rest: text, escape, value };
    let mut out = String::new();
    while let Some(letter) = reader.next() {
        match letter {
            '\'' => loop {
                match reader.next() {
                    Some('\'') => break,
                    Some(letter) => out.push(letter),
                    None => return Err(format!("a quote ' is not closed in {text:?}")),
                }
            },
            '"' => loop {
                match reader.next() {
                    Some('"') => break,
                    Some('$') => out += &reader.variable()?,
                    Some(letter) if letter == escape => match reader.next() {
                        Some(special) if special == '"' || special == '$' || special == escape => {
                            out.push(special);
                        }
                        Some(other) => out.extend([letter, other]),
                        None => return Err(format!("a quote \" is not closed in {text:?}")),
                    },
                    Some(letter) => out.push(letter),
                    None => return Err(format!("a quote \" is not closed in {text:?}")),
                }
            },
            '$' => out += &reader.variable()?,
            letter if letter == escape => out.extend(reader.next()),
            letter => out.push(letter),
        }
    }
    Ok(out)
}

/// The words of a line, quotes and variables left as they are.
pub(super) fn split(text: &str, escape: char) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut begin, mut quote, mut escaped) = (None, None, false);
    for (at, letter) in text.char_indices() {
        if quote.is_none() && !escaped && letter.is_whitespace() {
            words.extend(begin.take().map(|begin| &text[begin..at]));
            continue;
        }
        begin = begin.or(Some(at));
        match (quote, letter) {
            _ if escaped => escaped = false,
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), _) => {}
            (_, letter) if letter == escape => escaped = true,
            (None, '\'' | '"') => quote = Some(letter),
            _ => {}
        }
    }
    words.extend(begin.map(|begin| &text[begin..]));
    words
}

/// `NAME=value` pairs, or one name and the rest of the line as its value.
pub(super) fn pairs(
    text: &str,
    escape: char,
    value: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, Problem> {
    let words = split(text, escape);
    let first = words.first().copied().unwrap_or_default();
    if !first.contains('=') {
        let (name, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        if rest.trim().is_empty() {
            return Err(format!("{name:?} has no value"));
        }
        return Ok(vec![(expand(name, escape, value)?, expand(rest.trim(), escape, value)?)]);
    }
    let pair = |word: &str| {
        let (name, text) = word.split_once('=').ok_or_else(|| format!("{word:?} is not NAME=value"))?;
        match name {
            "" => Err(format!("{word:?} has no name")),
            name => Ok((expand(name, escape, value)?, expand(text, escape, value)?)),
        }
    };
    words.into_iter().map(pair).collect()
}

struct Reader<'a> {
    rest: &'a str,
    escape: char,
    value: &'a dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let letter = self.rest.chars().next()?;
        self.rest = &self.rest[letter.len_utf8()..];
        Some(letter)
    }

    /// What stands behind a `$`.
    fn variable(&mut self) -> Result<String, Problem> {
        let Some(inner) = self.rest.strip_prefix('{') else {
            let length = name_length(self.rest);
            let (name, rest) = self.rest.split_at(length);
            self.rest = rest;
            return Ok(match name {
                "" => "$".to_owned(),
                name => (self.value)(name).unwrap_or_default(),
            });
        };
        let end = closing(inner).ok_or_else(|| format!("${{{inner} is not closed"))?;
        let (content, rest) = (&inner[..end], &inner[end + 1..]);
        self.rest = rest;
        let (name, modifier) = content.split_at(name_length(content));
        let value = (self.value)(name).filter(|value| !(modifier.starts_with(':') && value.is_empty()));
        let word = |text: &str| expand(text, self.escape, self.value);
        match modifier.strip_prefix(':').unwrap_or(modifier) {
            _ if name.is_empty() => Err(format!("${{{content}}} names no variable")),
            "" if modifier.is_empty() => Ok(value.unwrap_or_default()),
            text if text.starts_with('-') => value.map_or_else(|| word(&text[1..]), Ok),
            text if text.starts_with('+') => value.map_or_else(|| Ok(String::new()), |_| word(&text[1..])),
            text if text.starts_with('?') => {
                value.ok_or_else(|| format!("{name} is not set: {}", text[1..].trim()))
            }
            _ => Err(format!("${{{content}}}: only :- :+ and :? are understood behind a variable's name")),
        }
    }
}

fn name_length(text: &str) -> usize {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    text.find(|letter| !is_name(letter)).unwrap_or(text.len())
}

/// Where a brace is closed that was opened before the text.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str) -> Option<String> {
        match name {
            "A" => Some("one".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn expanded(text: &str) -> String {
        expand(text, '\\', &value).unwrap()
    }

    #[test]
    fn variables_are_put_in_where_no_single_quote_holds_them() {
        for (text, wanted) in [
            ("$A/b", "one/b"),
            ("${A}b", "oneb"),
            ("$NONE.", "."),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A b\"", "one b"),
            ("\"\\\"\\n\"", "\"\\n"),
            ("${NONE:-x}", "x"),
            ("${EMPTY:-x}${EMPTY-y}", "x"),
            ("${A:+x}${NONE:+y}", "x"),
            ("${NONE:-${A}}", "one"),
            ("a\\ b", "a b"),
            ("100$", "100$"),
        ] {
            assert_eq!(expanded(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_not_closed_or_unknown_is_refused() {
        for text in ["'a", "\"a", "${A", "${A%x}", "${}", "${NONE:?must be given}"] {
            assert!(expand(text, '\\', &value).is_err(), "{text}");
        }
    }

    #[test]
    fn pairs_are_of_either_form() {
        let read = |text| pairs(text, '\\', &value).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read("A=1 B=\"x y\" C=a\\ b"), [pair("A", "1"), pair("B", "x y"), pair("C", "a b")]);
        assert_eq!(read("NAME some words $A"), [pair("NAME", "some words one")]);
        assert_eq!(read("PATH=/opt:$A"), [pair("PATH", "/opt:one")]);
        for text in ["NAME", "A=1 B", "=x"] {
            assert!(pairs(text, '\\', &value).is_err(), "{text}");
        }
    }
}
