//! Former names of keys, which are still accepted.

use super::document::Node;
use super::reader::{Finding, Problem, Step};

/// The section and the name of each key that was renamed: former, present.
const RENAMED: [[(&str, &str); 2]; 2] = [
    [("cache", "admission"), ("cache", "min_uses")],
    [("server", "max_connections"), ("limits", "connections")],
];

/// Gives each key that has its former name the present one. A key with both names is a mistake.
pub(super) fn adopt(root: &mut Node, findings: &mut Vec<Finding>) {
    for [(former_section, former), (section, name)] in RENAMED {
        let Some(place) = root.rename((former_section, former), (section, name)) else {
            continue;
        };
        let present = match former_section == section {
            true => name.to_owned(),
            false => format!("{section}.{name}"),
        };
        let problem = Problem::new(
            format!("is the former name of {present}, which is also there"),
            format!("keep {present}"),
        );
        findings.push(Finding {
            place: Some(place),
            path: vec![Step::Name(former_section.into()), Step::Name(former.into())],
            problem,
        });
    }
}
