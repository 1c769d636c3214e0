//! Environment variables in values: `${NAME}`, and `$${` for a literal `${`.

use zeroize::Zeroizing;

use super::reader::Problem;

/// A lookup of environment variables.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The text with its variables replaced. A replacement is not examined again, so a secret may contain
/// any character.
pub(super) fn fill(written: &str, env: Env) -> Result<Zeroizing<String>, Problem> {
    let mut filled = Zeroizing::new(String::with_capacity(written.len()));
    let mut rest = written;
    while let Some(at) = rest.find("${") {
        let (before, variable) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            filled.push_str(before);
            filled.push_str("${");
            rest = &variable[2..];
            continue;
        }
        filled.push_str(before);
        let (name, after) = variable[2..]
            .split_once('}')
            .filter(|(name, _)| is_variable_name(name))
            // The message does not show the text after it, which may be part of a secret.
            .ok_or_else(|| {
                Problem::new(
                    "has a ${ without a variable name and a closing }",
                    "write ${NAME} with letters, digits and _, or $${ for a literal ${",
                )
            })?;
        let value = env(name).map(Zeroizing::new).ok_or_else(|| {
            Problem::new(
                format!("needs the environment variable {name}, which is not set"),
                format!("set it with: export {name}=..."),
            )
        })?;
        filled.push_str(&value);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The text from which [`fill`] makes `text`, independent of variables.
pub(super) fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
