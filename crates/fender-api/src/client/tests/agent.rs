//! An agent and its control plane.

use super::*;
use crate::facts::Facts;

const AGENT: &str = "spiffe://acme.test/fender/agent/edge-1";

impl Bench {
    async fn agent(&self) -> AgentSession {
        self.agent_with(1).await
    }

    /// With the token of this number in its file, and its state.
    async fn agent_with(&self, number: u8) -> AgentSession {
        let token = self.control.token_for(AGENT, number);
        let config = self.config(Some(self.token(&token)), Some(self.state()));
        let deadline = Deadline::after(Duration::from_secs(30));
        open_agent(config, deadline).await.unwrap()
    }

    /// Over which connection the control plane was asked next.
    async fn asked_over(&mut self, agent: &AgentSession) -> String {
        let deadline = Deadline::after(Duration::from_secs(30));
        let ids = agent.entitle(&Facts::default(), deadline).await.unwrap();
        assert_eq!(ids, [id(ORDERS)]);
        loop {
            if let Heard::Entitle { by } = self.heard.recv().await.unwrap() {
                return by;
            }
        }
    }
}

#[tokio::test]
async fn an_agent_asks_over_one_connection_and_makes_another_when_that_is_over() {
    let mut bench = Bench::new();
    let agent = bench.agent().await;
    let first = bench.asked_over(&agent).await;
    for _ in 0..10 {
        assert_eq!(bench.asked_over(&agent).await, first);
    }
    // The same control plane at the same address, with none of its connections.
    bench
        .server
        .close(Deadline::after(Duration::from_secs(1)))
        .await;
    let address = format!("{}:{}", bench.url.host(), bench.url.port());
    bench.server = Drain::new();
    let listener = fender_runtime::listen::Listener::bind(&address.parse().unwrap()).unwrap();
    bench.control.serve(listener, &bench.server);
    assert_ne!(bench.asked_over(&agent).await, first);
}

#[tokio::test]
async fn an_agent_hears_whom_to_believe_and_of_what_is_placed_on_its_node() {
    let bench = Bench::new();
    let agent = bench.agent().await;
    let mut trusted = agent.trust();
    trusted.wait_for(|trust| trust.version == 1).await.unwrap();
    let mut changes = agent.changes();
    changes.wait_for(|count| *count == 1).await.unwrap();
    bench.control.placed.send_replace(2);
    changes.wait_for(|count| *count == 2).await.unwrap();
    bench.control.push_trust(trust(2, &bench.control.ca));
    trusted.wait_for(|trust| trust.version == 2).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_was_revoked_is_let_in_by_a_new_token_long_before_half_of_its_life() {
    let bench = Bench::new();
    let serial = |agent: &AgentSession| agent.svid().borrow().serial().clone();
    let agent = bench.agent().await;
    let before = serial(&agent);
    bench
        .client
        .close(Deadline::after(Duration::from_secs(10)))
        .await;
    drop(agent);
    *bench.control.refuse_renewals.lock().unwrap() = Some(Code::Revoked);
    *bench.control.revoked_agent.lock().unwrap() = Some(before.clone());

    // Nobody moves the clock: the certificate in the state has nearly all of its life left.
    let bench = bench.reborn();
    let agent = bench.agent_with(2).await;
    assert_eq!(serial(&agent), before, "the state comes first");
    let mut svid = agent.svid();
    svid.wait_for(|svid| *svid.serial() != before)
        .await
        .unwrap();
    let mut changes = agent.changes();
    changes.wait_for(|count| *count > 0).await.unwrap();
}

#[tokio::test]
async fn a_key_for_somebody_beside_the_agent_is_another_each_time() {
    let bench = Bench::new();
    let agent = bench.agent().await;
    let make = || {
        let deadline = Deadline::after(Duration::from_secs(30));
        let (agent, facts) = (&agent, Facts::default());
        async move { agent.svid_for(&id(ORDERS), &facts, deadline).await.unwrap() }
    };
    let (one, other) = (make().await, make().await);
    assert_eq!(one.id(), &id(ORDERS));
    assert_ne!(one.key_pem().expose(), other.key_pem().expose());
    // Another than asked for is not taken.
    *bench.control.issue_for.lock().unwrap() = Some(id("spiffe://acme.test/ns/shop/sa/web"));
    let deadline = Deadline::after(Duration::from_secs(30));
    let wrong = agent
        .svid_for(&id(ORDERS), &Facts::default(), deadline)
        .await;
    assert_eq!(wrong.unwrap_err().code(), Code::AnswerInvalid);
}
