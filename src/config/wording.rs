//! Mistakes in words, without secrets.

use std::path::Path;

use zeroize::Zeroizing;

use super::document::{Kind, Meaning, Node, Scalar};
use super::error::{ConfigError, Mistake};
use super::reader::{Finding, Problem, Step};
use super::values::REDACTED;
use super::variables::{fill, Env};

/// The most mistakes reported at once.
pub(super) const MAX_FINDINGS: usize = 100;

/// The longest value or key that is shown in full, in characters.
const MAX_SHOWN: usize = 100;

/// The shortest secret that is searched for within other text. A shorter one could be part of
/// ordinary words.
const MIN_CONTAINED: usize = 6;

/// The secrets of a file.
#[derive(Default)]
pub(super) struct Secrets(Vec<Zeroizing<String>>);

// === impl Secrets ===

impl Secrets {
    /// The values of all keys, known or not, whose names are like those of secrets.
    pub fn of(root: &Node, env: Env) -> Secrets {
        let mut secrets = Vec::new();
        root.walk(&mut Vec::new(), &mut |path, _, value| {
            let is_secret = matches!(path.last(), Some(Step::Name(name)) if is_secret_key(name));
            match &value.kind {
                Kind::Scalar(Scalar { written, meaning }) if is_secret => {
                    if *meaning == Meaning::Text {
                        secrets.extend(fill(written, env));
                    }
                    secrets.push(written.clone());
                }
                _ => {}
            }
        });
        secrets.retain(|secret| !secret.is_empty());
        Secrets(secrets)
    }

    /// Puts mistakes into words, at most [`MAX_FINDINGS`].
    pub fn word_all(&self, file: &Path, mut findings: Vec<Finding>) -> ConfigError {
        findings.sort_by_key(|finding| finding.place);
        if findings.len() > MAX_FINDINGS {
            findings.truncate(MAX_FINDINGS);
            findings.push(Finding {
                place: findings.last().and_then(|last| last.place),
                path: Vec::new(),
                problem: Problem::new("more mistakes follow", "correct these first"),
            });
        }
        let mistakes = findings.into_iter().map(|finding| self.word(file, finding));
        ConfigError::new(mistakes.collect())
    }

    /// Puts a mistake into words.
    pub fn word(&self, file: &Path, finding: Finding) -> Mistake {
        let path: Vec<_> = finding.path.iter().map(|step| self.shown(step)).collect();
        let key = Some(key(&path)).filter(|key| !key.is_empty());
        let problem = finding.problem;
        let value = match &problem.shown {
            None => String::new(),
            Some((written, _)) if self.hides(written) => format!("{REDACTED} "),
            Some((written, true)) => format!("{:?} ", shortened(written)),
            Some((written, false)) => format!("{} ", shortened(written)),
        };
        let what = format!("{value}{}; {}", problem.what, problem.remedy);
        Mistake::new(file, finding.place, key.as_deref(), &what)
    }

    /// A step of a path, without secrets.
    fn shown(&self, step: &Step) -> Step {
        let Step::Name(name) = step else {
            return step.clone();
        };
        // `secret_key:value` without a space is a key in YAML.
        let end = name.find([':', '=', ' ']).unwrap_or(name.len());
        Step::Name(match self.hides(name) {
            true => REDACTED.into(),
            false if end < name.len() => format!("{}...", shortened(&name[..end])),
            false => shortened(name),
        })
    }

    /// True if the text is a secret, contains one, or looks like one.
    fn hides(&self, text: &str) -> bool {
        looks_secret(text)
            || self.0.iter().any(|secret| {
                let contained = secret.len() >= MIN_CONTAINED && text.contains(secret.as_str());
                contained || text == secret.as_str()
            })
    }
}

/// The path of a key, such as `buckets[0].access_key`.
pub(super) fn key(path: &[Step]) -> String {
    let mut key = String::new();
    for step in path {
        match step {
            Step::Name(name) if key.is_empty() => key.push_str(name),
            Step::Name(name) => key.push_str(&format!(".{name}")),
            Step::Index(index) => key.push_str(&format!("[{index}]")),
        }
    }
    key
}

fn is_secret_key(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace(['-', '_'], "");
    ["accesskey", "secret", "token", "password"]
        .iter()
        .any(|word| name.contains(word))
}

/// True if a text looks like a key of AWS.
fn looks_secret(text: &str) -> bool {
    let has = |is: fn(&char) -> bool| text.chars().any(|c| is(&c));
    text.len() >= 20
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/+=".contains(&b))
        && has(char::is_ascii_uppercase)
        && has(char::is_ascii_digit)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
