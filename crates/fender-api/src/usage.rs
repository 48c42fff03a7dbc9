//! What a sidecar holds of a credential and what it knows of its use: proof of consumption, as far as there is any.
//!
//! No value is in it and nothing that is computed from one: a generation is a name that somebody drew. What is told is
//! bounded: a sidecar that has more to tell than fits tells first what uses an old generation, and how much it leaves out.
//! It is evidence of what was delivered, acknowledged and handed over, not of what an application does with it afterwards.

use fender_config::ObjectName;
use fender_runtime::clock::UnixTime;

use crate::proto::control::v1 as proto;

/// Uses of one credential that are told, at most.
pub const MAX_USES: usize = 16;
/// What one text may take, in bytes.
pub const MAX_TEXT: usize = 256;
/// What the name of a generation may take, in bytes.
pub const MAX_GENERATION: usize = 128;

/// One credential at one sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Which.
    pub name: ObjectName,
    /// How it stands.
    pub state: State,
    /// The generation that is in every place, if one is.
    pub generation: Option<String>,
    /// Since when it is in every place.
    pub since: Option<UnixTime>,
    /// A newer one, known and not in every place.
    pub newer: Option<String>,
    /// Why it is not delivered, or not the newest.
    pub why: String,
    /// How many files hold it.
    pub files: u32,
    /// Who is told of it, and who takes it.
    pub uses: Vec<Use>,
}

/// How a credential stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is none yet.
    Waiting,
    /// The newest is in every place.
    Delivered,
    /// What is in every place may not be the newest.
    Outdated,
    /// Its source took it back.
    Withdrawn,
    /// It cannot be had or delivered.
    Failed,
}

/// One consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// By what way.
    pub kind: UseKind,
    /// The target, `uid NUMBER`, or the file of the token.
    pub who: String,
    /// What it acknowledged or took last.
    pub generation: Option<String>,
    /// When it did so first with this one; none if there was nothing to tell it.
    pub at: Option<UnixTime>,
    /// It has still to be told of another.
    pub pending: bool,
}

/// By what way a consumer has a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UseKind {
    /// It is told of changes.
    Told,
    /// It takes it at the socket.
    Socket,
    /// It takes it at the URL.
    Url,
}

impl From<State> for proto::CredentialState {
    fn from(state: State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::Delivered => Self::Delivered,
            State::Outdated => Self::Outdated,
            State::Withdrawn => Self::Withdrawn,
            State::Failed => Self::Failed,
        }
    }
}

impl From<&Usage> for proto::CredentialInUse {
    fn from(usage: &Usage) -> Self {
        let generation = |name: &Option<String>| cut(name.as_deref(), MAX_GENERATION);
        let mut uses: Vec<_> = usage.uses.iter().collect();
        // What is left out is what is right.
        uses.sort_by_key(|used| used.generation == usage.generation && !used.pending);
        let told = uses.iter().take(MAX_USES).map(|used| proto::CredentialUse {
            kind: match used.kind {
                UseKind::Told => proto::CredentialUseKind::Told,
                UseKind::Socket => proto::CredentialUseKind::Socket,
                UseKind::Url => proto::CredentialUseKind::Url,
            }
            .into(),
            who: cut(Some(&used.who), MAX_TEXT),
            generation: generation(&used.generation),
            at_unix: unix(used.at),
            pending: used.pending,
        });
        Self {
            name: usage.name.to_string(),
            generation: generation(&usage.generation),
            state: proto::CredentialState::from(usage.state).into(),
            since_unix: unix(usage.since),
            why: cut(Some(&usage.why), MAX_TEXT),
            newer: generation(&usage.newer),
            files: usage.files,
            uses: told.collect(),
            uses_untold: u32::try_from(uses.len().saturating_sub(MAX_USES)).unwrap_or(u32::MAX),
            current: String::new(),
        }
    }
}

/// What is taken of such a report, whoever wrote it: within the bounds above, and nothing that is not a sidecar's to say.
pub fn bounded(mut told: proto::CredentialInUse) -> proto::CredentialInUse {
    for text in [&mut told.generation, &mut told.newer] {
        shorten(text, MAX_GENERATION);
    }
    shorten(&mut told.why, MAX_TEXT);
    let over = told.uses.len().saturating_sub(MAX_USES);
    let over = u32::try_from(over).unwrap_or(u32::MAX);
    told.uses_untold = told.uses_untold.saturating_add(over);
    told.uses.truncate(MAX_USES);
    told.uses.shrink_to_fit();
    for used in &mut told.uses {
        shorten(&mut used.who, MAX_TEXT);
        shorten(&mut used.generation, MAX_GENERATION);
    }
    told.current = String::new();
    told
}

fn unix(moment: Option<UnixTime>) -> i64 {
    moment.map_or(0, |it| i64::try_from(it.as_secs()).unwrap_or(i64::MAX))
}

fn cut(text: Option<&str>, most: usize) -> String {
    let text = text.unwrap_or_default();
    let end = text.floor_char_boundary(most);
    text.get(..end).unwrap_or_default().to_owned()
}

fn shorten(text: &mut String, most: usize) {
    if text.len() > most {
        *text = cut(Some(text), most);
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn used(number: usize, generation: &str) -> Use {
        Use {
            kind: UseKind::Socket,
            who: format!("uid {number}"),
            generation: Some(generation.to_owned()),
            at: None,
            pending: false,
        }
    }

    fn usage(uses: Vec<Use>) -> Usage {
        Usage {
            name: "shop/smtp".parse().unwrap(),
            state: State::Delivered,
            generation: Some("new".to_owned()),
            since: None,
            newer: None,
            why: String::new(),
            files: 1,
            uses,
        }
    }

    #[test]
    fn who_uses_an_old_one_is_told_first_and_how_many_are_left_out() {
        let mut uses: Vec<_> = (0..40).map(|number| used(number, "new")).collect();
        uses.push(used(40, "old"));
        let told = proto::CredentialInUse::from(&usage(uses));
        assert_eq!((told.uses.len(), told.uses_untold), (MAX_USES, 25));
        assert_eq!(told.uses[0].generation, "old");
    }

    #[test]
    fn attack_a_report_is_cut_to_its_bounds_and_says_nothing_in_the_control_planes_name() {
        let long = "ß".repeat(100_000);
        let mut told = proto::CredentialInUse::from(&usage(Vec::new()));
        let used = proto::CredentialUse {
            who: long.clone(),
            generation: long.clone(),
            ..Default::default()
        };
        told.uses = vec![used; 10_000];
        for text in [&mut told.generation, &mut told.newer, &mut told.why] {
            text.clone_from(&long);
        }
        told.current = "forged".to_owned();
        let taken = bounded(told);
        assert_eq!(taken.current, "");
        assert_eq!(taken.uses_untold, 10_000 - 16);
        assert!(taken.encoded_len() < 8 * 1024, "{}", taken.encoded_len());
        assert_eq!(bounded(taken.clone()), taken);
    }
}
