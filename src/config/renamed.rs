//! Former names of keys, which are still accepted.

use super::document::Node;
use super::reader::{Finding, Problem, Step};

/// A section, the former name of a key in it, and its name.
const RENAMED: [(&str, &str, &str); 1] = [("cache", "admission", "min_uses")];

/// Gives each key that has its former name the present one. A key with both names is a mistake.
pub(super) fn adopt(root: &mut Node, findings: &mut Vec<Finding>) {
    for (section, former, name) in RENAMED {
        let path = [Step::Name(section.into())];
        let Some(place) = root.rename(&path, former, name) else {
            continue;
        };
        let problem = Problem::new(
            format!("is the former name of {name}, which is also there"),
            format!("keep {name}"),
        );
        findings.push(Finding {
            place: Some(place),
            path: path
                .into_iter()
                .chain([Step::Name(former.into())])
                .collect(),
            problem,
        });
    }
}
