//! The administrator's commands about join tokens that are made already: token list, token revoke.
//!
//! A token is in the file it was written to and nowhere else. What is shown is the beginning of its hash.

use std::fmt::Write as _;

use fender_api::admin::{Bearer, Tokens};
use fender_api::proto::control::v1 as proto;
use fender_identity::{NodeName, WorkloadName};
use fender_runtime::deadline::Deadline;
use serde_json::{Value, json};

use crate::admin::{CALL_TIME, connect, refused};
use crate::exit::{Failure, Outcome};
use crate::status::show;
use crate::{cli, print, render};

pub(crate) async fn list(args: cli::TokenList) -> Outcome {
    let of = bearer(args.workload, args.node);
    let tokens = connect(&args.admin)
        .await?
        .tokens(of.as_ref(), Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    let all = tokens.iter().map(as_json).collect();
    show(args.output, &json!({ "tokens": Value::Array(all) }), table)
}

pub(crate) async fn revoke(args: cli::TokenRevoke) -> Outcome {
    let which = match (args.id, bearer(args.workload, args.node)) {
        (Some(id), _) => Tokens::Called(id),
        (None, Some(bearer)) => Tokens::Of(bearer),
        (None, None) => {
            return Err(Failure::usage(
                "name a token as `fender token list` does, or `--workload` or `--node` for all of its tokens",
            ));
        }
    };
    let revoked = connect(&args.admin)
        .await?
        .revoke_tokens(which, Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    print(&match revoked {
        1 => "1 join token revoked\n".to_owned(),
        revoked => format!("{revoked} join tokens revoked\n"),
    })
}

fn bearer(workload: Option<WorkloadName>, node: Option<NodeName>) -> Option<Bearer> {
    workload
        .map(Bearer::Workload)
        .or_else(|| node.map(Bearer::Node))
}

fn as_json(token: &proto::UnspentToken) -> Value {
    json!({
        "id": token.id,
        "identity": token.identity,
        "created_by": token.created_by,
        "created": render::moment(token.created_unix),
        "expires": render::moment(token.expires_unix),
    })
}

fn table(value: &Value) -> String {
    let Some(tokens) = value["tokens"].as_array().filter(|all| !all.is_empty()) else {
        return "no join token is waiting to be used\n".to_owned();
    };
    tokens.iter().fold(String::new(), |mut text, one| {
        let word = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let _ = writeln!(
            text,
            "{} for {} until {}\n    made {} by {}",
            word("id"),
            word("identity"),
            word("expires"),
            word("created"),
            word("created_by"),
        );
        text
    })
}
