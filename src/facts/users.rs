//! Local users and groups (passwd(5), group(5)).

use std::collections::BTreeMap;

use super::{Group, User};

pub(super) fn users(text: &str) -> BTreeMap<String, User> {
    let user = |line: &str| {
        let f: Vec<&str> = line.split(':').collect();
        Some(((*f.first()?).to_owned(), User { uid: f.get(2)?.parse().ok()?, gid: f.get(3)?.parse().ok()? }))
    };
    text.lines().filter_map(user).collect()
}

pub(super) fn groups(text: &str) -> BTreeMap<String, Group> {
    let group = |line: &str| {
        let f: Vec<&str> = line.split(':').collect();
        let members = f.get(3)?.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
        Some(((*f.first()?).to_owned(), Group { gid: f.get(2)?.parse().ok()?, members }))
    };
    text.lines().filter_map(group).collect()
}
