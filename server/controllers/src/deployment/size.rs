//! How many pods each ReplicaSet of a Deployment should have. Pure arithmetic, upstream's
//! `deployment/{rolling,sync}.go` and `util/deployment_util.go`. Every number is a user's: sums are held at the
//! limits of their type.

use ketch_api::k8s::{
    api::apps::v1::{Deployment, ReplicaSet},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// The Deployment's replicas when the set was last scaled.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The most pods the Deployment could have then.
pub(super) const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

pub(super) fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate"
}

/// `(max_surge, max_unavailable)` in pods. Never both 0, or nothing could move.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
    let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter);
    let wanted = wanted(deployment);
    match (scaled(surge, wanted, true), scaled(unavailable, wanted, false)) {
        (0, 0) => (0, 1),
        posts => posts,
    }
}

fn scaled(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => (*n).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.max(0).saturating_mul(i64::from(total));
            let rounded = if up { product.saturating_add(99) / 100 } else { product / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    if is_rolling(deployment) { fenceposts(deployment).0 } else { 0 }
}

pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = wanted(deployment);
    if !is_rolling(deployment) || wanted == 0 { 0 } else { fenceposts(deployment).1.min(wanted) }
}

/// What a set was asked for.
pub(super) fn asked(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub(super) fn total_asked<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i32 {
    total(sets.into_iter().map(asked))
}

/// A sum, held at the limits of its type.
pub(super) fn total(numbers: impl Iterator<Item = i32>) -> i32 {
    numbers.fold(0, i32::saturating_add)
}

/// Size of the newest set during a rollout, `current` being its size so far and `others` the older sets.
pub(super) fn newest(deployment: &Deployment, current: i32, others: &[&ReplicaSet]) -> i32 {
    let wanted = wanted(deployment);
    if !is_rolling(deployment) || current >= wanted {
        return wanted;
    }
    let most = wanted.saturating_add(max_surge(deployment));
    let room = most.saturating_sub(current).saturating_sub(total_asked(others.iter().copied()));
    if room <= 0 { current } else { current + room.min(wanted - current) }
}

/// New sizes of older sets (ordered oldest first) in the next step of a rolling update. Sets that keep
/// their size are left out.
///
/// Pods that are not available anyway go first; then as many as availability allows.
pub(super) fn older<'a>(
    deployment: &Deployment,
    newest: &ReplicaSet,
    older: &[&'a ReplicaSet],
) -> Vec<(&'a ReplicaSet, i32)> {
    let all = total_asked(older.iter().copied().chain([newest]));
    let least = wanted(deployment) - max_unavailable(deployment);
    let starting = asked(newest).saturating_sub(available(newest));
    let mut spare = all.saturating_sub(least).saturating_sub(starting);
    if spare <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = older.iter().map(|set| asked(set)).collect();
    for (set, size) in older.iter().zip(&mut sizes) {
        let broken = size.saturating_sub(available(set)).clamp(0, spare.max(0));
        *size -= broken;
        spare -= broken;
    }
    let available_now = total(older.iter().copied().chain([newest]).map(available));
    let mut spare = available_now.saturating_sub(least).max(0);
    for size in &mut sizes {
        let less = spare.min(*size);
        *size -= less;
        spare -= less;
    }
    older
        .iter()
        .zip(sizes)
        .filter(|(set, size)| asked(set) != *size)
        .map(|(set, size)| (*set, size))
        .collect()
}

fn annotation(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

/// Whether the Deployment's size changed since its sets were last scaled.
pub(super) fn is_scaling<'a>(
    deployment: &Deployment,
    sets: impl IntoIterator<Item = &'a ReplicaSet>,
) -> bool {
    let mut active = sets.into_iter().filter(|set| asked(set) > 0);
    active.any(|set| annotation(set, DESIRED).is_some_and(|desired| desired != wanted(deployment)))
}

/// Sizes after the Deployment itself was scaled, in the middle of a rollout or not.
pub(super) fn rescale<'a>(
    deployment: &Deployment,
    newest: Option<&'a ReplicaSet>,
    older: &[&'a ReplicaSet],
) -> Vec<(&'a ReplicaSet, i32)> {
    let wanted = wanted(deployment);
    let active: Vec<&ReplicaSet> = older.iter().copied().chain(newest).filter(|set| asked(set) > 0).collect();
    if let Some(only) = only_or_latest(&active, newest, older) {
        return vec![(only, wanted)];
    }
    if newest.is_some_and(|set| is_saturated(deployment, set)) {
        return older.iter().filter(|set| asked(set) > 0).map(|set| (*set, 0)).collect();
    }
    if !is_rolling(deployment) {
        return Vec::new();
    }
    proportional(deployment, active)
}

/// The set to scale when there is no choice.
fn only_or_latest<'a>(
    active: &[&'a ReplicaSet],
    newest: Option<&'a ReplicaSet>,
    older: &[&'a ReplicaSet],
) -> Option<&'a ReplicaSet> {
    match active {
        [] => newest.or(older.last().copied()),
        [one] => Some(one),
        _ => None,
    }
}

fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = wanted(deployment);
    asked(set) == wanted && annotation(set, DESIRED) == Some(wanted) && available(set) == wanted
}

/// Shares the difference among the sets in proportion to their sizes; what rounding leaves goes to the
/// largest.
fn proportional<'a>(deployment: &Deployment, mut sets: Vec<&'a ReplicaSet>) -> Vec<(&'a ReplicaSet, i32)> {
    let wanted = wanted(deployment);
    let allowed = if wanted > 0 { wanted.saturating_add(max_surge(deployment)) } else { 0 };
    let to_add = allowed - total_asked(sets.iter().copied());
    // Largest first; of equal ones the newer is grown first and the older is shrunk first.
    sets.sort_by(|a, b| {
        let (a_time, b_time) = (&a.metadata.creation_timestamp, &b.metadata.creation_timestamp);
        let age = if to_add > 0 { b_time.cmp(a_time) } else { a_time.cmp(b_time) };
        asked(b).cmp(&asked(a)).then(age)
    });
    let mut added = 0;
    let mut sizes: Vec<(&ReplicaSet, i32)> = Vec::with_capacity(sets.len());
    for set in sets {
        let share = share(deployment, set, to_add, added);
        added = share.saturating_add(added);
        sizes.push((set, asked(set).saturating_add(share)));
    }
    if let Some((_, first)) = sizes.first_mut() {
        *first = first.saturating_add(to_add.saturating_sub(added)).max(0);
    }
    sizes
}

fn share(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if asked(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, set);
    let left = to_add.saturating_sub(added);
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

fn fraction(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let wanted = wanted(deployment);
    let size = asked(set);
    if wanted == 0 {
        return -size;
    }
    let most = f64::from(wanted.saturating_add(max_surge(deployment)));
    let status = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
    let before = annotation(set, MAXIMUM).filter(|most| *most > 0).unwrap_or(status);
    if before <= 0 {
        return 0;
    }
    #[allow(clippy::cast_possible_truncation, reason = "bounded by replica counts, which are i32")]
    let size_now = (f64::from(size) * most / f64::from(before)).round() as i32;
    size_now.saturating_sub(size)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
        let value = |text: &str| text.parse::<i32>().map_or(json!(text), |n| json!(n));
        serde_json::from_value(json!({"metadata": {}, "spec": {"replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": value(surge), "maxUnavailable": value(unavailable)}}}}))
        .unwrap()
    }

    fn set(name: &str, asked: i32, available: i32, most: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {MAXIMUM: most.to_string(), DESIRED: "10"}},
            "spec": {"replicas": asked, "selector": {}},
            "status": {"replicas": asked, "availableReplicas": available}}))
        .unwrap()
    }

    fn sizes(list: Vec<(&ReplicaSet, i32)>) -> Vec<(String, i32)> {
        list.into_iter().map(|(set, size)| (set.metadata.name.clone().unwrap(), size)).collect()
    }

    #[test]
    fn numbers_at_their_limits_are_sizes_too() {
        for surge in ["2147483647", "9223372036854775807%", "99999999999999999999%"] {
            let deployment = deployment(i32::MAX, surge, "0");
            let (old, new) = (set("old", i32::MAX, i32::MAX, 1), set("new", i32::MAX, 0, i32::MAX));
            assert!(max_surge(&deployment) >= 0, "{surge}");
            assert_eq!(newest(&deployment, 1, &[&old]), 1, "{surge}");
            assert!(older(&deployment, &new, &[&old, &old]).iter().all(|(_, size)| *size >= 0), "{surge}");
            assert!(rescale(&deployment, Some(&new), &[&old]).iter().all(|(_, size)| *size >= 0), "{surge}");
        }
    }

    #[test]
    fn percentages_round_away_from_harm() {
        let quarter = deployment(10, "25%", "25%");
        assert_eq!((max_surge(&quarter), max_unavailable(&quarter)), (3, 2));
        let tiny = deployment(1, "0", "25%");
        assert_eq!((max_surge(&tiny), max_unavailable(&tiny)), (0, 1), "something must move");
        assert_eq!(max_unavailable(&deployment(2, "1", "5")), 2);
        assert_eq!(max_unavailable(&deployment(0, "1", "1")), 0);
    }

    #[test]
    fn the_newest_set_grows_into_the_surge() {
        let rolling = deployment(10, "3", "2");
        let old = set("old", 10, 10, 13);
        assert_eq!(newest(&rolling, 0, &[&old]), 3);
        assert_eq!(newest(&rolling, 3, &[&old]), 3);
        assert_eq!(newest(&rolling, 3, &[&set("old", 6, 6, 13)]), 7);
        assert_eq!(newest(&rolling, 12, &[]), 10, "and shrinks to what is wanted");
        assert_eq!(newest(&rolling, 0, &[&set("old", 20, 20, 13)]), 0);
    }

    #[test]
    fn older_sets_shrink_as_far_as_availability_allows() {
        let rolling = deployment(10, "3", "2");
        let old = set("old", 10, 10, 13);
        assert_eq!(sizes(older(&rolling, &set("new", 3, 0, 13), &[&old])), [("old".into(), 8)]);
        let old = set("old", 8, 8, 13);
        assert!(older(&rolling, &set("new", 5, 0, 13), &[&old]).is_empty());
        assert_eq!(sizes(older(&rolling, &set("new", 5, 5, 13), &[&old])), [("old".into(), 3)]);
    }

    #[test]
    fn broken_pods_of_older_sets_go_first() {
        let rolling = deployment(10, "3", "2");
        let (sick, well) = (set("sick", 3, 0, 13), set("well", 8, 8, 13));
        let steps = sizes(older(&rolling, &set("new", 2, 0, 13), &[&sick, &well]));
        assert_eq!(steps, [("sick".into(), 0)]);
    }

    #[test]
    fn a_rollout_in_progress_is_scaled_in_proportion() {
        // 10 + surge 3 = 13 pods in 5:8, scaled to 20 (+3).
        let bigger = deployment(20, "3", "2");
        let (old, new) = (set("old", 8, 8, 13), set("new", 5, 5, 13));
        assert!(is_scaling(&bigger, [&old, &new]));
        assert_eq!(sizes(rescale(&bigger, Some(&new), &[&old])), [("old".into(), 14), ("new".into(), 9)]);
        let smaller = deployment(5, "3", "2");
        assert_eq!(sizes(rescale(&smaller, Some(&new), &[&old])), [("old".into(), 5), ("new".into(), 3)]);
        let none = deployment(0, "3", "2");
        assert_eq!(sizes(rescale(&none, Some(&new), &[&old])), [("old".into(), 0), ("new".into(), 0)]);
    }

    #[test]
    fn a_lone_set_takes_it_all() {
        let bigger = deployment(20, "3", "2");
        let new = set("new", 10, 10, 13);
        let old = set("old", 0, 0, 13);
        assert_eq!(sizes(rescale(&bigger, Some(&new), &[&old])), [("new".into(), 20)]);
    }
}
