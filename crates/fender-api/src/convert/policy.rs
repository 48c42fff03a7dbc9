//! Policies on the wire. A clause that cannot be read refuses the whole set: a rule must not become wider on its way.

use fender_policy as domain;

use super::{InvalidField, each, parse, parse_all, port, required, texts, unknown};
use crate::proto::control::v1 as proto;

impl TryFrom<proto::PolicySet> for domain::PolicySet {
    type Error = InvalidField;

    fn try_from(message: proto::PolicySet) -> Result<Self, InvalidField> {
        Ok(Self {
            default: match proto::Default::try_from(message.default) {
                Ok(proto::Default::Deny) => domain::Default::Deny,
                Ok(proto::Default::Allow) => domain::Default::Allow,
                Ok(proto::Default::Audit) => domain::Default::Audit,
                Ok(proto::Default::Unspecified) | Err(_) => {
                    return Err(unknown("default", message.default));
                }
            },
            policies: each("policies", message.policies, policy)?,
        })
    }
}

impl From<&domain::PolicySet> for proto::PolicySet {
    fn from(set: &domain::PolicySet) -> Self {
        let default = match set.default {
            domain::Default::Deny => proto::Default::Deny,
            domain::Default::Allow => proto::Default::Allow,
            domain::Default::Audit => proto::Default::Audit,
        };
        Self {
            default: default.into(),
            policies: set.policies.iter().map(from_policy).collect(),
        }
    }
}

fn policy(message: proto::Policy) -> Result<domain::Policy, InvalidField> {
    Ok(domain::Policy {
        name: parse("name", &message.name)?,
        action: match proto::Action::try_from(message.action) {
            Ok(proto::Action::Allow) => domain::Action::Allow,
            Ok(proto::Action::Deny) => domain::Action::Deny,
            Ok(proto::Action::Audit) => domain::Action::Audit,
            Ok(proto::Action::Unspecified) | Err(_) => {
                return Err(unknown("action", message.action));
            }
        },
        rules: each("rules", message.rules, rule)?,
    })
}

fn from_policy(policy: &domain::Policy) -> proto::Policy {
    let action = match policy.action {
        domain::Action::Allow => proto::Action::Allow,
        domain::Action::Deny => proto::Action::Deny,
        domain::Action::Audit => proto::Action::Audit,
    };
    proto::Policy {
        name: policy.name.to_string(),
        action: action.into(),
        rules: policy.rules.iter().map(from_rule).collect(),
    }
}

fn rule(message: proto::Rule) -> Result<domain::Rule, InvalidField> {
    Ok(domain::Rule {
        from: each("from", message.from, source)?,
        to: each("to", message.to, operation)?,
        when: each("when", message.when, condition)?,
    })
}

fn from_rule(rule: &domain::Rule) -> proto::Rule {
    proto::Rule {
        from: rule.from.iter().map(from_source).collect(),
        to: rule.to.iter().map(from_operation).collect(),
        when: rule.when.iter().map(from_condition).collect(),
    }
}

fn source(message: proto::Source) -> Result<domain::Source, InvalidField> {
    Ok(domain::Source {
        principals: each("principals", message.principals, text)?,
        not_principals: each("not_principals", message.not_principals, text)?,
        namespaces: each("namespaces", message.namespaces, text)?,
        not_namespaces: each("not_namespaces", message.not_namespaces, text)?,
        service_accounts: parse_all("service_accounts", &message.service_accounts)?,
        not_service_accounts: parse_all("not_service_accounts", &message.not_service_accounts)?,
        ip_blocks: parse_all("ip_blocks", &message.ip_blocks)?,
        not_ip_blocks: parse_all("not_ip_blocks", &message.not_ip_blocks)?,
        remote_ip_blocks: parse_all("remote_ip_blocks", &message.remote_ip_blocks)?,
        not_remote_ip_blocks: parse_all("not_remote_ip_blocks", &message.not_remote_ip_blocks)?,
    })
}

fn from_source(source: &domain::Source) -> proto::Source {
    proto::Source {
        principals: from_texts(&source.principals),
        not_principals: from_texts(&source.not_principals),
        namespaces: from_texts(&source.namespaces),
        not_namespaces: from_texts(&source.not_namespaces),
        service_accounts: texts(&source.service_accounts),
        not_service_accounts: texts(&source.not_service_accounts),
        ip_blocks: texts(&source.ip_blocks),
        not_ip_blocks: texts(&source.not_ip_blocks),
        remote_ip_blocks: texts(&source.remote_ip_blocks),
        not_remote_ip_blocks: texts(&source.not_remote_ip_blocks),
    }
}

fn operation(message: proto::Operation) -> Result<domain::Operation, InvalidField> {
    Ok(domain::Operation {
        hosts: each("hosts", message.hosts, text)?,
        not_hosts: each("not_hosts", message.not_hosts, text)?,
        ports: ports("ports", &message.ports)?,
        not_ports: ports("not_ports", &message.not_ports)?,
        methods: each("methods", message.methods, text)?,
        not_methods: each("not_methods", message.not_methods, text)?,
        paths: each("paths", message.paths, path)?,
        not_paths: each("not_paths", message.not_paths, path)?,
    })
}

fn from_operation(operation: &domain::Operation) -> proto::Operation {
    proto::Operation {
        hosts: from_texts(&operation.hosts),
        not_hosts: from_texts(&operation.not_hosts),
        ports: operation.ports.iter().copied().map(u32::from).collect(),
        not_ports: operation.not_ports.iter().copied().map(u32::from).collect(),
        methods: from_texts(&operation.methods),
        not_methods: from_texts(&operation.not_methods),
        paths: operation.paths.iter().map(from_path).collect(),
        not_paths: operation.not_paths.iter().map(from_path).collect(),
    }
}

fn ports(field: &str, ports: &[u32]) -> Result<Vec<u16>, InvalidField> {
    ports
        .iter()
        .enumerate()
        .map(|(i, number)| port(&format!("{field}[{i}]"), *number))
        .collect()
}

fn condition(message: proto::Condition) -> Result<domain::Condition, InvalidField> {
    let values = each("values", message.values, text)?;
    let not_values = each("not_values", message.not_values, text)?;
    domain::Condition::new(&message.key, values, not_values)
        .map_err(|error| InvalidField::new("key", error))
}

fn from_condition(condition: &domain::Condition) -> proto::Condition {
    proto::Condition {
        key: condition.key(),
        values: from_texts(&condition.values()),
        not_values: from_texts(&condition.not_values()),
    }
}

fn text(message: proto::TextMatch) -> Result<domain::TextMatch, InvalidField> {
    use proto::text_match::Kind;
    match required("kind", message.kind)? {
        Kind::Exact(text) => Ok(domain::TextMatch::Exact(text)),
        Kind::Prefix(text) => Ok(domain::TextMatch::Prefix(text)),
        Kind::Suffix(text) => Ok(domain::TextMatch::Suffix(text)),
        Kind::Present(true) => Ok(domain::TextMatch::Present),
        Kind::Present(false) => Err(InvalidField::new("present", "is false, which asks nothing")),
        Kind::Template(_) => Err(InvalidField::new("template", "only a path has templates")),
    }
}

fn path(message: proto::TextMatch) -> Result<domain::PathMatch, InvalidField> {
    use proto::text_match::Kind;
    match message.kind {
        Some(Kind::Template(template)) => {
            parse("template", &template).map(domain::PathMatch::Template)
        }
        kind => text(proto::TextMatch { kind }).map(domain::PathMatch::Text),
    }
}

fn from_text(text: &domain::TextMatch) -> proto::TextMatch {
    use proto::text_match::Kind;
    proto::TextMatch {
        kind: Some(match text {
            domain::TextMatch::Exact(text) => Kind::Exact(text.clone()),
            domain::TextMatch::Prefix(text) => Kind::Prefix(text.clone()),
            domain::TextMatch::Suffix(text) => Kind::Suffix(text.clone()),
            domain::TextMatch::Present => Kind::Present(true),
        }),
    }
}

fn from_texts(matches: &[domain::TextMatch]) -> Vec<proto::TextMatch> {
    matches.iter().map(from_text).collect()
}

fn from_path(path: &domain::PathMatch) -> proto::TextMatch {
    match path {
        domain::PathMatch::Text(text) => from_text(text),
        domain::PathMatch::Template(template) => proto::TextMatch {
            kind: Some(proto::text_match::Kind::Template(template.to_string())),
        },
    }
}
