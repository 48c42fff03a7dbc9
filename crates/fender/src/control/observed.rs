//! What a control plane tells at its admin socket: whether it serves, and what a monitoring system reads.

use fender_control::Running;

use crate::admin_socket::{Observed, Reading};

pub(super) struct Plane(pub(super) Running);

impl Observed for Plane {
    fn has_started(&self) -> bool {
        // The socket is opened when it serves.
        true
    }

    fn stuck(&self) -> Vec<String> {
        // That it answers is all there is to know here.
        Vec::new()
    }

    async fn unready(&self) -> Vec<String> {
        match self.0.is_ready().await {
            true => Vec::new(),
            false => vec![
                "it is stopping, its database does not answer, or its authority cannot sign now: see the log"
                    .to_owned(),
            ],
        }
    }

    async fn metrics(&self) -> String {
        self.0.metrics().await
    }

    fn read(&self, _: &str) -> Reading {
        Reading::Missing("unknown path; an administrator asks by `fender status`\n")
    }
}
