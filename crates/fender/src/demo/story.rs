//! What the demo shows, chapter by chapter, and what each chapter expects.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fender_identity::{Bundle, Bundles, PeerSvid, SpiffeId, Svid, TrustDomain, WorkloadName};
use hyper::StatusCode;
use tokio::sync::watch;
use tokio::time::Instant;

use super::app::fingerprint;
use super::client::{self, Answer, Client};
use super::say;
use super::world::{TRUST_DOMAIN, World};
use crate::render;

const ROTATION_PATIENCE: Duration = Duration::from_secs(2);
const KEEP_ALIVE_CONNECTIONS: usize = 4;

/// Whether a person watches or a script checks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    Show,
    Check,
}

impl Pace {
    /// The lifetime of the certificates: short, so that a renewal can be seen.
    pub(crate) fn leaf(self) -> &'static str {
        match self {
            Self::Show => "20s",
            Self::Check => "8s",
        }
    }

    fn renewal_patience(self) -> Duration {
        match self {
            Self::Show => Duration::from_secs(25),
            Self::Check => Duration::from_secs(12),
        }
    }
}

pub(crate) struct Story<'a> {
    world: &'a mut World,
    pace: Pace,
    held: bool,
}

/// What a person needs to call the two services.
struct Person {
    svid: Svid,
    bundles: Arc<Bundles>,
}

impl<'a> Story<'a> {
    pub(crate) fn new(world: &'a mut World, pace: Pace) -> Self {
        Self {
            world,
            pace,
            held: true,
        }
    }

    /// True if every expectation held.
    pub(crate) async fn tell(mut self) -> Result<bool> {
        self.narrate(
            "Fender demo: a control plane, two services that know nothing of TLS, and a rogue.\n",
        );
        let begun = Instant::now();
        self.world.start().await?;
        self.narrate(&format!(
            "Started the control plane, three sidecars and two plain HTTP applications in {} ms.",
            begun.elapsed().as_millis()
        ));
        let person = self.person().await?;
        let orders = Client::new(
            Some(&person.svid),
            Arc::clone(&person.bundles),
            workload("orders")?,
            self.world.ports.orders,
        )?;

        let result = self.certificate_issued(&orders).await;
        self.expect("certificate issued", result);
        let result = https_answered(&orders).await;
        self.expect("https answered", result);
        let result = call_carries_identity(&orders).await;
        self.expect("call carried by mTLS with the caller's identity", result);
        let result = self.anonymous_refused(&person).await;
        self.expect("caller without a certificate refused", result);
        let result = self.rogue_denied().await;
        self.expect("rogue denied, and the denial explained", result);
        let result = self.credential_rotated(&orders).await;
        self.expect("credential rotated", result);
        let result = self.renewed_under_traffic(&orders).await;
        self.expect("certificate renewed under traffic", result);
        self.world.all_running().await?;

        if self.held {
            self.print_commands();
        }
        Ok(self.held)
    }

    fn narrate(&self, line: &str) {
        if self.pace == Pace::Show {
            say(line);
        }
    }

    fn expect(&mut self, what: &str, result: Result<String>) {
        let (mark, detail) = match result {
            Ok(detail) => ("ok  ", detail),
            Err(error) => {
                self.held = false;
                ("FAIL", format!("{error:#}"))
            }
        };
        match self.pace {
            Pace::Check => say(&format!(
                "{mark} {what}: {}",
                detail.lines().next().unwrap_or_default()
            )),
            Pace::Show => say(&format!(
                "\n[{}] {what}\n    {}",
                mark.trim(),
                detail.replace('\n', "\n    ")
            )),
        }
    }

    async fn person(&self) -> Result<Person> {
        let directory = self.world.path("person");
        self.world
            .run(&[
                "svid",
                "write",
                &directory.to_string_lossy(),
                "--name",
                "visitor",
                "--ttl",
                "1h",
            ])
            .await?;
        let read = |name: &str| {
            std::fs::read(directory.join(name)).with_context(|| format!("read {name}"))
        };
        let svid = Svid::from_pem(&read("certificate.pem")?, &read("key.pem")?)?;
        let bundle = Bundle::from_pem(trust_domain()?, &read("bundle.pem")?)?;
        let mut bundles = Bundles::new();
        bundles.insert(bundle);
        Ok(Person {
            svid,
            bundles: Arc::new(bundles),
        })
    }

    async fn certificate_issued(&self, orders: &Client) -> Result<String> {
        let answer = orders.get("/orders/1").await?;
        let shown = server(&answer)?;
        ensure!(
            *shown.id() == workload("orders")?,
            "the certificate is for {}",
            shown.id()
        );
        let until = i64::try_from(shown.not_after().as_secs()).unwrap_or_default();
        Ok(format!(
            "{} serial {} until {}; its key was made in the sidecar",
            shown.id(),
            shown.serial(),
            render::moment(until)
        ))
    }

    /// The same call without a certificate must not get as far as HTTP.
    async fn anonymous_refused(&self, person: &Person) -> Result<String> {
        let anonymous = Client::new(
            None,
            Arc::clone(&person.bundles),
            workload("orders")?,
            self.world.ports.orders,
        )?;
        match anonymous.get("/orders/1").await {
            Ok(answer) => anyhow::bail!("an anonymous caller was answered {}", answer.status),
            Err(error) => Ok(format!("refused in TLS: {}", error.root_cause())),
        }
    }

    async fn rogue_denied(&self) -> Result<String> {
        let answer = client::plain(self.world.ports.rogue_to_inventory, "/stock/42").await?;
        ensure!(
            answer.status == StatusCode::FORBIDDEN,
            "the rogue was answered {}",
            answer.status
        );
        let id = answer
            .header("x-fender-decision")
            .context("the denial carries no x-fender-decision")?
            .to_owned();
        let deadline = Instant::now() + ROTATION_PATIENCE;
        let explanation = loop {
            match self.world.run(&["explain", &id]).await {
                Ok(explanation) => break explanation,
                // The record travels to the control plane after the answer.
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        ensure!(
            explanation.contains(workload("rogue")?.as_str()),
            "the explanation does not name the caller:\n{explanation}"
        );
        Ok(format!(
            "403, decision {id}\n$ fender explain {id}\n{}",
            explanation.trim_end()
        ))
    }

    async fn credential_rotated(&self, orders: &Client) -> Result<String> {
        let before = app_credential(orders).await?;
        let value = "the-demo-credential-number-2";
        self.world.set_credential(value)?;
        let begun = Instant::now();
        while app_credential(orders).await? != fingerprint(value.as_bytes()) {
            ensure!(
                begun.elapsed() < ROTATION_PATIENCE,
                "the application still reads the old credential"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(format!(
            "the application reads the new one after {} ms (fingerprint {before} became {})",
            begun.elapsed().as_millis(),
            fingerprint(value.as_bytes())
        ))
    }

    /// Connections held open and connections made anew, from before a renewal to after it.
    async fn renewed_under_traffic(&self, orders: &Client) -> Result<String> {
        let first = self.serial(orders).await?;
        let (stop, stopped) = watch::channel(false);
        let held = futures_util::future::try_join_all(
            (0..KEEP_ALIVE_CONNECTIONS).map(|_| orders.keep_asking("/orders/9", stopped.clone())),
        );
        let renew = async {
            let begun = Instant::now();
            let mut fresh = 0;
            loop {
                let answer = orders.get("/orders/9").await?;
                ensure!(
                    answer.status == StatusCode::OK,
                    "answered {}",
                    answer.status
                );
                fresh += 1;
                let serial = server(&answer)?.serial().to_string();
                if serial != first {
                    stop.send_replace(true);
                    return Ok((serial, fresh, begun.elapsed()));
                }
                ensure!(
                    begun.elapsed() < self.pace.renewal_patience(),
                    "no renewal was seen"
                );
            }
        };
        let (held, (serial, fresh, elapsed)) = futures_util::future::try_join(held, renew).await?;
        let kept: u64 = held.iter().sum();
        Ok(format!(
            "serial {first} became {serial} after {:.1} s; {kept} requests on {KEEP_ALIVE_CONNECTIONS} open connections and {fresh} on new ones, none failed",
            elapsed.as_secs_f64()
        ))
    }

    async fn serial(&self, client: &Client) -> Result<String> {
        let answer = client.get("/orders/9").await?;
        Ok(server(&answer)?.serial().to_string())
    }

    fn print_commands(&self) {
        let person = self.world.path("person");
        let person = person.display();
        let port = self.world.ports.orders.port();
        let curl = format!(
            "curl --cacert {person}/bundle.pem --cert {person}/certificate.pem --key {person}/key.pem"
        );
        self.narrate(&format!(
            "\nTry it yourself, in another terminal:\n\
             \n  {curl} https://localhost:{port}/orders/7\
             \n  {curl} -X DELETE https://localhost:{port}/orders/7   # denied: then `fender explain`\
             \n  curl --cacert {person}/bundle.pem https://localhost:{port}/orders/7   # no certificate\
             \n  curl http://{}/stock/42   # as the rogue\
             \n  export FENDER_CONTROL={} FENDER_ADMIN={}\
             \n  {} status\
             \n\nPress Ctrl-C to stop.",
            self.world.ports.rogue_to_inventory,
            self.world.control_url(),
            self.world.admin().display(),
            std::env::current_exe().unwrap_or_else(|_| "fender".into()).display(),
        ));
    }
}

/// Returns when a process of the demo has ended by itself, having said so.
pub(crate) async fn watch_processes(world: &mut World) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Err(error) = world.all_running().await {
            say(&format!("{error:#}"));
            return;
        }
    }
}

async fn https_answered(orders: &Client) -> Result<String> {
    let answer = orders.get("/orders/7").await?;
    ensure!(
        answer.status == StatusCode::OK,
        "answered {}",
        answer.status
    );
    Ok(format!(
        "GET /orders/7 over mTLS: 200 {}",
        String::from_utf8_lossy(&answer.body).trim()
    ))
}

async fn call_carries_identity(orders: &Client) -> Result<String> {
    let answer = orders.get("/orders/7").await?.json()?;
    let seen = answer
        .pointer("/stock/called_by")
        .and_then(|value| value.as_str())
        .unwrap_or_default()
        .to_owned();
    let expected = format!("URI={}", workload("orders")?.as_str());
    ensure!(seen.contains(&expected), "inventory was told `{seen}`");
    Ok(format!(
        "orders called plain HTTP on loopback; inventory was told x-forwarded-client-cert: {seen}"
    ))
}

async fn app_credential(orders: &Client) -> Result<String> {
    let answer = orders.get("/credential").await?;
    ensure!(
        answer.status == StatusCode::OK,
        "answered {}: {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
    let value = answer.json()?;
    Ok(value
        .get("fingerprint")
        .and_then(|value| value.as_str())
        .context("no fingerprint in the answer")?
        .to_owned())
}

fn server(answer: &Answer) -> Result<&PeerSvid> {
    answer
        .server
        .svid()
        .context("the answer did not come over TLS")
}

fn trust_domain() -> Result<TrustDomain> {
    Ok(TRUST_DOMAIN.parse()?)
}

fn workload(name: &str) -> Result<SpiffeId> {
    Ok(SpiffeId::for_workload(
        &trust_domain()?,
        &WorkloadName::new("shop", name)?,
    ))
}
