//! `$(NAME)` in values, commands and paths. Pure.
//!
//! All of it is a tenant's: a text may name a long value many times, and values are made of values. So what comes
//! out has a limit, and finding a value does not depend on how many there are.

use std::collections::BTreeMap;

/// Longest text with its variables filled in, in bytes: as much as a ConfigMap can hold.
const LONGEST: usize = 1 << 20;
/// Most bytes of a container's environment, and of its command.
pub(super) const MOST: usize = 8 << 20;
/// Characters of a text that a message shows.
const SHOWN: usize = 40;

/// The variables of a container.
pub(crate) struct Variables<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Variables<'a> {
    /// Of an environment in which each name is once.
    pub(crate) fn new(env: &'a [(String, String)]) -> Self {
        Self(env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect())
    }

    /// Replaces `$(NAME)` by the variable's value. `$$` is a dollar sign; names that are not set stay as written.
    ///
    /// # Errors
    /// When the result would be too long.
    pub(crate) fn expand(&self, text: &str) -> Result<String, String> {
        expand(text, |name| self.0.get(name).copied())
    }

    /// [`Variables::expand`] of every text.
    ///
    /// # Errors
    /// When one result or all together would be too long.
    pub(crate) fn expand_all(&self, texts: &[String]) -> Result<Vec<String>, String> {
        let (mut all, mut size) = (Vec::with_capacity(texts.len()), 0);
        for text in texts {
            let expanded = self.expand(text)?;
            size += expanded.len();
            if size > MOST {
                return Err(format!(
                    "the command and its arguments have more than {MOST} bytes with their variables filled in; use \
                     fewer or shorter variables"
                ));
            }
            all.push(expanded);
        }
        Ok(all)
    }
}

/// Fills the variables in, whose values `value` knows.
pub(super) fn expand<'v>(text: &str, value: impl Fn(&str) -> Option<&'v str>) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        rest = after;
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match value(name) {
                Some(value) if result.len() + value.len() > LONGEST => return Err(too_long(text)),
                Some(value) => result.push_str(value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            result.push('$');
        }
    }
    Ok(result + rest)
}

fn too_long(text: &str) -> String {
    let start: String = text.chars().take(SHOWN).collect();
    let more = if start.len() < text.len() { "…" } else { "" };
    format!(
        "{start:?}{more} has more than {LONGEST} bytes with its variables filled in; use fewer or shorter variables"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_leaves_what_it_does_not_know() {
        let env = [("A".to_owned(), "1".to_owned())];
        for (text, expected) in [
            ("$(A)", "1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("a$(A)b$(A)", "a1b1"),
        ] {
            assert_eq!(Variables::new(&env).expand(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_comes_out_has_a_limit() {
        let env = [("A".to_owned(), "x".repeat(LONGEST / 2))];
        let variables = Variables::new(&env);
        assert_eq!(variables.expand("$(A)$(A)").unwrap().len(), LONGEST);
        assert!(variables.expand("$(A)$(A)$(A)").unwrap_err().contains("$(A)"));
        let texts = |count| vec!["$(A)".to_owned(); count];
        assert_eq!(variables.expand_all(&texts(16)).unwrap().len(), 16);
        assert!(variables.expand_all(&texts(17)).unwrap_err().contains("arguments"));
    }
}
