//! Istio's `AuthorizationPolicy`, as it is. What cannot be honoured is an error naming the field.
//!
//! Where Istio lets an empty list mean *anything*, it is refused: a list somebody emptied must not
//! open a door.

use fender_identity::WorkloadName;
use fender_policy::{
    Action, Condition, InvalidCondition, Operation, PathMatch, Policy, PolicyName, Rule, Source,
    TextMatch,
};
use ipnet::IpNet;

use super::{NAME_HELP, full_name};
use crate::documents::{SelectingPolicy, Selector};
use crate::raw::{self, IstioDocument, Texts};
use crate::suggest::nearest;
use crate::yaml::{At, Reader};

/// `root_namespace` is known from the Mesh: a policy there selects everywhere.
pub(crate) fn policy(
    reader: &mut Reader<'_>,
    document: IstioDocument<raw::AuthorizationPolicy>,
    root_namespace: &str,
) -> Option<SelectingPolicy> {
    let IstioDocument { metadata, spec, .. } = document;
    let name: Option<PolicyName> = full_name(reader, &metadata, |namespace, name| {
        format!("{namespace}/{name}").parse()
    });
    let namespace = metadata.value.namespace.map(|at| at.value);
    let mut action = Some(Action::Allow);
    let mut rules = Vec::new();
    let mut labels = std::collections::BTreeMap::new();
    if let Some(spec) = spec.map(|at| at.value) {
        let help = "select workloads by `selector.matchLabels`";
        reader.unsupported("targetRef", &spec.target_ref, help);
        reader.unsupported("targetRefs", &spec.target_refs, help);
        reader.unsupported(
            "provider",
            &spec.provider,
            "external authorizers (`action: CUSTOM`) are not called",
        );
        action = self::action(reader, spec.action.as_ref());
        rules = spec.rules.unwrap_or_default();
        labels = spec
            .selector
            .map(|selector| selector.value.match_labels)
            .unwrap_or_default();
        if action == Some(Action::Deny) && rules.is_empty() {
            let help = "to deny everybody, write `rules: [ {} ]`";
            reader.warn(
                &metadata.value.name,
                "fender::no-rules",
                "a DENY policy without rules denies nobody",
                help,
            );
        }
    }
    let rules = rules
        .iter()
        .map(|at| rule(reader, at, namespace.as_deref()))
        .collect();
    let namespace = namespace.filter(|namespace| namespace != root_namespace);
    Some(SelectingPolicy {
        policy: Policy {
            name: name?,
            action: action?,
            rules,
        },
        selector: Selector { namespace, labels },
    })
}

fn action(reader: &mut Reader<'_>, at: Option<&At<crate::yaml::Word<Action>>>) -> Option<Action> {
    match at {
        None => Some(Action::Allow),
        Some(at) if at.value.text == "CUSTOM" => {
            let help = "external authorizers are not called; express it as ALLOW or DENY";
            reader.wrong(
                at,
                "fender::unsupported",
                "`action: CUSTOM` is not supported",
                help,
            );
            None
        }
        Some(at) => reader.choose("action", at),
    }
}

fn rule(reader: &mut Reader<'_>, at: &At<raw::Rule>, namespace: Option<&str>) -> Rule {
    let from = filled(reader, "from", at.value.from.as_ref());
    let to = filled(reader, "to", at.value.to.as_ref());
    let when = filled(reader, "when", at.value.when.as_ref());
    Rule {
        from: from
            .iter()
            .map(|at| source(reader, &at.value.source, namespace))
            .collect(),
        to: to
            .iter()
            .map(|at| operation(reader, &at.value.operation))
            .collect(),
        when: when
            .iter()
            .filter_map(|at| condition(reader, &at.value))
            .collect(),
    }
}

/// The entries of a list. One that is there must have some.
fn filled<'a, T>(
    reader: &mut Reader<'_>,
    field: &str,
    list: Option<&'a At<Vec<At<T>>>>,
) -> &'a [At<T>] {
    let Some(at) = list else { return &[] };
    if at.value.is_empty() {
        let help = "remove the field if you mean *any*; to allow nobody, write an ALLOW \
            policy without rules";
        reader.wrong(
            at,
            "fender::empty-list",
            format!("`{field}` is an empty list, which would ask for nothing"),
            help,
        );
    }
    &at.value
}

fn source(reader: &mut Reader<'_>, at: &At<raw::RuleSource>, namespace: Option<&str>) -> Source {
    let raw = &at.value;
    const JWT: &str =
        "JWTs are not evaluated yet; use `principals`, `namespaces` or `serviceAccounts`";
    reader.unsupported("requestPrincipals", &raw.request_principals, JWT);
    reader.unsupported("notRequestPrincipals", &raw.not_request_principals, JWT);
    let source = Source {
        principals: list(reader, "principals", &raw.principals, principal),
        not_principals: list(reader, "notPrincipals", &raw.not_principals, principal),
        namespaces: list(reader, "namespaces", &raw.namespaces, text),
        not_namespaces: list(reader, "notNamespaces", &raw.not_namespaces, text),
        service_accounts: list(
            reader,
            "serviceAccounts",
            &raw.service_accounts,
            |reader, at| account(reader, at, namespace),
        ),
        not_service_accounts: list(
            reader,
            "notServiceAccounts",
            &raw.not_service_accounts,
            |reader, at| account(reader, at, namespace),
        ),
        ip_blocks: list(reader, "ipBlocks", &raw.ip_blocks, ip_block),
        not_ip_blocks: list(reader, "notIpBlocks", &raw.not_ip_blocks, ip_block),
        remote_ip_blocks: list(reader, "remoteIpBlocks", &raw.remote_ip_blocks, ip_block),
        not_remote_ip_blocks: list(
            reader,
            "notRemoteIpBlocks",
            &raw.not_remote_ip_blocks,
            ip_block,
        ),
    };
    let lists = [
        &raw.principals,
        &raw.not_principals,
        &raw.namespaces,
        &raw.not_namespaces,
        &raw.service_accounts,
        &raw.not_service_accounts,
        &raw.ip_blocks,
        &raw.not_ip_blocks,
        &raw.remote_ip_blocks,
        &raw.not_remote_ip_blocks,
    ];
    let unsupported = [&raw.request_principals, &raw.not_request_principals];
    if lists.iter().all(|list| list.is_none()) && unsupported.iter().all(|field| field.is_none()) {
        reader.wrong(
            at,
            "fender::empty-list",
            "this `source` asks for nothing",
            "remove `from` if you mean any source",
        );
    }
    source
}

fn operation(reader: &mut Reader<'_>, at: &At<raw::RuleOperation>) -> Operation {
    let raw = &at.value;
    let operation = Operation {
        hosts: list(reader, "hosts", &raw.hosts, host),
        not_hosts: list(reader, "notHosts", &raw.not_hosts, host),
        ports: list(reader, "ports", &raw.ports, port),
        not_ports: list(reader, "notPorts", &raw.not_ports, port),
        methods: list(reader, "methods", &raw.methods, method),
        not_methods: list(reader, "notMethods", &raw.not_methods, method),
        paths: list(reader, "paths", &raw.paths, path),
        not_paths: list(reader, "notPaths", &raw.not_paths, path),
    };
    let lists = [
        &raw.hosts,
        &raw.not_hosts,
        &raw.ports,
        &raw.not_ports,
        &raw.methods,
        &raw.not_methods,
        &raw.paths,
        &raw.not_paths,
    ];
    if lists.iter().all(|list| list.is_none()) {
        reader.wrong(
            at,
            "fender::empty-list",
            "this `operation` asks for nothing",
            "remove `to` if you mean any operation",
        );
    }
    operation
}

fn list<T>(
    reader: &mut Reader<'_>,
    field: &str,
    texts: &Texts,
    mut parse: impl FnMut(&mut Reader<'_>, &At<String>) -> Option<T>,
) -> Vec<T> {
    filled(reader, field, texts.as_ref())
        .iter()
        .filter_map(|at| parse(reader, at))
        .collect()
}

fn text(reader: &mut Reader<'_>, at: &At<String>) -> Option<TextMatch> {
    if at.value.is_empty() {
        reader.wrong(
            at,
            "fender::bad-pattern",
            "an empty text matches nothing",
            "`*` means *any, but present*",
        );
        return None;
    }
    Some(at.value.as_str().into())
}

fn principal(reader: &mut Reader<'_>, at: &At<String>) -> Option<TextMatch> {
    if let Some(rest) = at.value.strip_prefix("spiffe://") {
        let help = format!("write `{rest}`");
        reader.wrong(
            at,
            "fender::bad-pattern",
            "a principal is written without `spiffe://`, and would never match",
            help,
        );
        return None;
    }
    if at.value.starts_with("cluster.local/") {
        let help = "write the trust domain itself, or `*/ns/…` for any";
        reader.warn(
            at,
            "fender::cluster-local",
            "`cluster.local` is read as the trust domain of the mesh, as Istio does",
            help,
        );
    }
    text(reader, at)
}

/// Methods are compared as they are, so that `get` in a rule could never match.
fn method(reader: &mut Reader<'_>, at: &At<String>) -> Option<TextMatch> {
    if at.value.bytes().any(|b| b.is_ascii_lowercase()) {
        let help = format!("write `{}`", at.value.to_ascii_uppercase());
        reader.wrong(
            at,
            "fender::bad-pattern",
            format!(
                "`{}` would never match: methods are case-sensitive",
                at.value
            ),
            help,
        );
        return None;
    }
    text(reader, at)
}

/// Hosts are matched in lower case and without the dot that ends a fully qualified name.
fn host(reader: &mut Reader<'_>, at: &At<String>) -> Option<TextMatch> {
    let host = at.value.trim_end_matches('.');
    if host.len() < at.value.len() || !host.is_ascii() {
        let help = "leave out the final dot, and write an international name in its `xn--` form";
        reader.wrong(
            at,
            "fender::bad-pattern",
            format!("`{}` would never match", at.value),
            help,
        );
        return None;
    }
    text(reader, at)
}

fn path(reader: &mut Reader<'_>, at: &At<String>) -> Option<PathMatch> {
    text(reader, at)?;
    if at.value.contains('?') {
        let help = "the query is not matched; end the path before `?`";
        reader.wrong(
            at,
            "fender::bad-pattern",
            format!("`{}` would never match", at.value),
            help,
        );
        return None;
    }
    if let Some(help) = unmatchable(&at.value) {
        reader.wrong(
            at,
            "fender::bad-pattern",
            format!(
                "`{}` would never match the one form paths are brought into",
                at.value
            ),
            help,
        );
        return None;
    }
    reader.parse(
        at,
        "fender::bad-pattern",
        "for example `/reports/{*}/pages/{**}`",
    )
}

/// Why no request can have this path, and how to write it instead. A DENY that never matches would
/// guard nothing.
fn unmatchable(pattern: &str) -> Option<&'static str> {
    const DOTS: &str = "leave out `.` and `..`";
    const ESCAPED: &str =
        "write every byte but `A-Z a-z 0-9 - . _ ~ ! $ & ' ( ) * + , ; = : @ /` as `%HH`";
    const PLAIN: &str = "write letters, digits, `-`, `.`, `_` and `~` as they are, and every other \
        `%HH` with upper-case digits";
    // Operators of templates are not text.
    let text = pattern.replace("{**}", "").replace("{*}", "");
    if text.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Some(DOTS);
    }
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte);
    if !text.bytes().all(is_plain) {
        return Some(ESCAPED);
    }
    let escapes = text.split('%').skip(1);
    let is_canonical = |rest: &str| {
        let digits = rest.as_bytes().get(..2).unwrap_or(rest.as_bytes());
        let upper = digits
            .iter()
            .all(|digit| digit.is_ascii_digit() || (b'A'..=b'F').contains(digit) || *digit == b'*');
        let byte = rest
            .get(..2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        upper && !byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    };
    (!escapes.clone().all(is_canonical)).then_some(PLAIN)
}

fn port(reader: &mut Reader<'_>, at: &At<String>) -> Option<u16> {
    let port = at.value.parse().ok().filter(|port| *port != 0);
    if port.is_none() {
        reader.wrong(
            at,
            "fender::bad-port",
            format!("`{}` is not a port", at.value),
            "a number from 1 to 65535",
        );
    }
    port
}

/// A name alone is one in the namespace of the policy.
fn account(
    reader: &mut Reader<'_>,
    at: &At<String>,
    namespace: Option<&str>,
) -> Option<WorkloadName> {
    let (of, name) = at
        .value
        .split_once('/')
        .or(namespace.map(|namespace| (namespace, at.value.as_str())))?;
    reader.take(
        at,
        "fender::bad-name",
        NAME_HELP,
        WorkloadName::new(of, name),
    )
}

pub(super) fn ip_block(reader: &mut Reader<'_>, at: &At<String>) -> Option<IpNet> {
    let address = || at.value.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    let block = at.value.parse::<IpNet>().ok().or_else(address);
    match block {
        None => {
            let message = format!("`{}` is not a block of IP addresses", at.value);
            reader.wrong(
                at,
                "fender::bad-cidr",
                message,
                "write `10.0.0.0/8`, `2001:db8::/32` or a single address",
            );
        }
        Some(block) if block.trunc() != block => {
            let help = format!(
                "the block it lies in is `{}`; to mean the one address, leave `/{}` out",
                block.trunc(),
                block.prefix_len()
            );
            reader.warn(
                at,
                "fender::loose-cidr",
                format!("`{block}` has bits set beyond its prefix"),
                help,
            );
        }
        Some(_) => {}
    }
    block.map(|block| block.trunc())
}

/// Keys that can be evaluated, for "did you mean".
const KEYS: [&str; 6] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "destination.port",
];

fn condition(reader: &mut Reader<'_>, raw: &raw::Condition) -> Option<Condition> {
    let values = list(reader, "values", &raw.values, text);
    let not_values = list(reader, "notValues", &raw.not_values, text);
    let error = match Condition::new(&raw.key.value, values, not_values) {
        Ok(condition) => return Some(condition),
        Err(error) => error,
    };
    let help = if let InvalidCondition::UnknownKey { key } = &error {
        match nearest(key, KEYS) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!(
                "the keys that are: {}, request.headers[NAME]",
                KEYS.join(", ")
            ),
        }
    } else if let InvalidCondition::Value { .. } = &error {
        "`*` has no meaning here".to_owned()
    } else {
        "a condition has a `key`, and `values` or `notValues`".to_owned()
    };
    let at = match (&error, &raw.values, &raw.not_values) {
        (InvalidCondition::Value { value, .. }, values, not_values) => {
            let lists = [values, not_values].into_iter().flatten();
            lists
                .flat_map(|list| &list.value)
                .find(|at| at.value == *value)
                .unwrap_or(&raw.key)
        }
        _ => &raw.key,
    };
    reader.wrong(at, "fender::bad-condition", error.to_string(), help);
    None
}
