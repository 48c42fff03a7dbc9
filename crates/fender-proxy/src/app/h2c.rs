//! An app that speaks HTTP/2 without TLS, by prior knowledge (h2c, RFC 9113 §3.3).
//!
//! Each connection of a peer's has one connection to the app, for all of its requests and for nobody
//! else's. So no peer can take the app's room for streams or the window of a connection from another, a
//! connection that breaks breaks for one peer, and what the app is told of a connection is true of all it
//! carries. It is made with the first request and ends when none has been open for a while, so that idle
//! peers take no room from others, or with the peer's connection: soon after it at the latest, because an app
//! that does not take what is left may hold nothing. It has a task, in the drain of that connection.
//!
//! Each request takes as much room among those of all peers ([`Limits::links`]) as a connection of HTTP/1 does, for as
//! long as it lives, because what is held of its response is no less: the first with the room of the connection itself.
//!
//! A request is begun only once there is room for it among those whose heads the app has not taken yet
//! ([`outflow`]): a peer that asks and gives up, again and again, before an app that has stopped reading,
//! makes us hold no more than a peer that waits.
//!
//! A request is sent a second time only where the app has not processed it: it refused the stream, or it
//! went away before (RFC 9113 §8.7), and nothing of its body was taken; or where a connection that was there
//! before it ended without a word of response to a request that is idempotent and has no body.

mod call;
mod outflow;
mod usage;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_wire::{Fields, Framing, HeadError, RequestHead, ResponseHead};
use h2::client::SendRequest;
use http::header::{CONTENT_LENGTH, TE};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Uri, Version};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;

use crate::Limits;
use crate::app::App;
use crate::call::{Fate, Head, Near, Onward, unless_it_ends};
use crate::crowd;
use crate::fault::{Fault, OurFault, PeerFault, UpstreamFault};
use crate::headers;
use crate::introduction::Introduction;
use crate::paced::{Pace, Paced};
use crate::permit::{AskedRequest, Permit};
use crate::stream::Stream;
use outflow::Outflow;
use usage::{Usage, Use};

pub(crate) use call::Call;

/// The way of one peer's connection to the app.
#[derive(Debug)]
pub(crate) struct Trunk {
    /// The lock is held while the connection is made, so that many requests at once make one.
    place: Arc<Mutex<Place>>,
    drain: Drain,
    /// As many as the peer may have open.
    streams: u32,
    /// Gone with the peer's connection.
    needed: watch::Sender<()>,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way<'a> {
    pub(crate) app: &'a App,
    pub(crate) permit: &'a Permit,
    pub(crate) introduction: Option<&'a Introduction>,
    /// The room for requests of the peer's address.
    pub(crate) share: Option<&'a crowd::Room>,
}

#[derive(Debug, Default)]
struct Place {
    /// How many connections there were.
    made: u64,
    open: Option<Open>,
}

/// A connection to the app.
#[derive(Clone, Debug)]
struct Open {
    sender: SendRequest<Bytes>,
    /// Room for requests whose heads the app has not taken.
    room: Arc<Semaphore>,
    usage: Arc<Usage>,
    /// The room that the connection has itself, for one request.
    own: Arc<Semaphore>,
    /// Counts the connections of this trunk.
    number: u64,
    /// Gone with the connection's task.
    alive: Weak<()>,
}

/// Which connection a request may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Any,
    /// One that was made after this one failed.
    After(u64),
}

/// Since when there is a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// It was made for this request.
    Now,
    Before,
}

impl Trunk {
    pub(crate) fn new(drain: Drain, streams: u32) -> Self {
        Self {
            place: Arc::default(),
            drain,
            streams,
            needed: watch::Sender::new(()),
        }
    }

    /// Sends one request and waits for the head of its response.
    ///
    /// Dropping the future resets the stream: the app hears that nobody waits any more.
    pub(crate) async fn send(
        &self,
        way: Way<'_>,
        onward: &Onward,
        near: &mut impl Near,
    ) -> Result<(ResponseHead, Call), Fault> {
        let Head::Http2(request) = &onward.head else {
            return Err(OurFault::Unwritable("a request of HTTP/1 here".to_owned()).into());
        };
        let limits = way.app.limits();
        let mut which = Which::Any;
        loop {
            let deadline = Deadline::after(limits.establish);
            let opened = self.open(way, which, deadline);
            let (open, used, since) = unless_it_ends(near, opened).await??;
            let room = unless_it_ends(near, open.room(way, deadline)).await??;
            let number = open.number;
            let begun = Call::begin(open, (used, room), onward, request, limits, deadline);
            let (failed, taken) = match unless_it_ends(near, begun).await? {
                Err(failed) => (failed, false),
                Ok(mut call) => match poll_fn(|cx| call.poll_head(near, cx)).await {
                    Ok(head) => return Ok((head, call)),
                    Err(failed) => (failed, call.has_taken()),
                },
            };
            let again = match failed.fate {
                Fate::Unsent => !taken,
                Fate::Lost => since == Since::Before && onward.repeats(),
                Fate::Other => false,
            };
            if !again || which != Which::Any {
                return Err(failed.fault);
            }
            which = Which::After(number);
        }
    }

    /// The connection, which is made if there is none.
    async fn open(
        &self,
        way: Way<'_>,
        which: Which,
        deadline: Deadline,
    ) -> Result<(Open, Use, Since), Fault> {
        let late = |_| UpstreamFault::TakesTooLong(1);
        let mut place = deadline.bound(self.place.lock()).await.map_err(late)?;
        let is_good = |open: &&Open| {
            let after = match which {
                Which::Any => true,
                Which::After(number) => open.number > number,
            };
            after && open.alive.strong_count() > 0
        };
        // A use begins under the lock, and one that is idle goes under it.
        if let Some(open) = place.open.as_ref().filter(is_good) {
            return Ok((open.clone(), open.usage.begin(), Since::Before));
        }
        place.made += 1;
        let number = place.made;
        let open = self.connect(way, number, deadline).await?;
        let open = place.open.insert(open).clone();
        let used = open.usage.begin();
        Ok((open, used, Since::Now))
    }

    async fn connect(&self, way: Way<'_>, number: u64, deadline: Deadline) -> Result<Open, Fault> {
        let limits = way.app.limits();
        let room = way.room(deadline).await?;
        let connected = way.app.connect(way.permit, way.introduction, deadline);
        let untaken = Arc::new(Semaphore::new(count(self.streams)));
        let pace = Pace::new(limits);
        let io = Paced::new(Stream::plain(connected.await?), 0, pace.clone());
        let io = Outflow::new(io, untaken.clone());
        let (sender, mut connection) = match deadline
            .bound(builder(limits, self.streams).handshake(io))
            .await
        {
            Ok(shaken) => shaken.map_err(|error| breaks(&error))?,
            Err(_) => return Err(UpstreamFault::TakesTooLong(1).into()),
        };
        let lives = Arc::new(());
        let alive = Arc::downgrade(&lives);
        let usage = Arc::<Usage>::default();
        let own = Arc::new(Semaphore::new(1));
        let last = own.clone();
        let (closed, used, mut needed) = (untaken.clone(), usage.clone(), self.needed.subscribe());
        let (linger, idle, place) = (limits.linger, limits.pool_idle, Arc::downgrade(&self.place));
        let connection = poll_fn(move |cx| {
            pace.renew();
            Pin::new(&mut connection).poll(cx)
        });
        self.drain.spawn(async move {
            let left_alone = async {
                tokio::select! {
                    // An error is the news: nobody needs it any more.
                    _ = needed.changed() => {}
                    () = leave_idle(&place, number, &used, idle) => {}
                }
                sleep(linger).await;
            };
            tokio::select! {
                // How it ended reaches the requests that were open on it.
                _ = connection => {}
                () = left_alone => {}
            }
            closed.close();
            drop(lives);
            // What is held of a response outlives the connection it came on.
            let _last = last.acquire().await;
            drop(room);
        });
        Ok(Open {
            sender,
            room: untaken,
            usage,
            own,
            number,
            alive,
        })
    }
}

impl Open {
    /// Room for one more request.
    async fn room(&self, way: Way<'_>, deadline: Deadline) -> Result<Room, Fault> {
        tokio::select! {
            biased;
            Ok(own) = self.own.clone().acquire_owned() => Ok((own, None)),
            room = way.room(deadline) => room,
        }
    }
}

/// What a request, or a connection, takes: of all, and of what its address has.
type Room = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Way<'_> {
    async fn room(self, deadline: Deadline) -> Result<Room, Fault> {
        let share = crowd::room(self.share, deadline).await?;
        Ok((self.app.slot(deadline).await?, share))
    }
}

/// Resolves when the connection of this number has been idle for so long, and no request will be begun on it any more.
async fn leave_idle(place: &Weak<Mutex<Place>>, number: u64, used: &Usage, limit: Duration) {
    loop {
        used.rests_for(limit).await;
        let Some(place) = place.upgrade() else {
            return;
        };
        let mut place = place.lock().await;
        if used.is_idle() {
            place.open.take_if(|open| open.number == number);
            return;
        }
    }
}

fn builder(limits: &Limits, streams: u32) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        // None before the app has said how many.
        .initial_max_send_streams(0)
        .max_concurrent_reset_streams(count(streams))
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_window_size(limits.app_stream_window)
        .initial_connection_window_size(limits.app_stream_window.saturating_mul(streams))
        .max_send_buffer_size(usize::try_from(limits.app_stream_window).unwrap_or(usize::MAX));
    builder
}

fn count(streams: u32) -> usize {
    usize::try_from(streams).unwrap_or(usize::MAX)
}

/// A request as an app of HTTP/2 gets it: the fields that pass, and what we say of it.
pub(crate) fn request(
    asked: &AskedRequest,
    said: &Fields,
    passes: fn(&RequestHead, &[u8]) -> bool,
) -> Result<Request<()>, Fault> {
    let (head, path, trace) = (asked.head(), asked.path(), asked.trace());
    let unwritable = |error: &dyn std::error::Error| OurFault::Unwritable(error.to_string());
    let target = match head.query() {
        Some(query) => Bytes::from(format!("{path}?{query}")),
        None => Bytes::copy_from_slice(path.as_bytes()),
    };
    // What no query may hold (RFC 3986 §3.4) and HTTP/1 forgives: a client of HTTP/2 could not have sent it either, and
    // encoded it would be another query than was asked.
    let target = PathAndQuery::from_maybe_shared(target)
        .map_err(|_| PeerFault::from(HeadError::BreaksTarget))?;
    if target.path() != path || target.query() != head.query() {
        return Err(OurFault::Unwritable("the target as it was matched".to_owned()).into());
    }
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(target);
    parts.scheme = Some(Scheme::HTTP);
    parts.authority =
        Some(http::uri::Authority::try_from(asked.host()).map_err(|error| unwritable(&error))?);
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| unwritable(&error))?;
    *request.method_mut() =
        Method::from_bytes(head.method().as_bytes()).map_err(|error| unwritable(&error))?;
    let map = request.headers_mut();
    for field in head.fields().iter() {
        // The length is said once, below.
        let name = field.name_bytes();
        let passes = passes(head, name) && trace.passes(name);
        if passes && !field.is("content-length") {
            headers::append(map, head.fields(), field);
        }
    }
    for field in said.iter() {
        headers::append(map, said, field);
    }
    if let Some(parent) = trace.said() {
        let parent = HeaderValue::from_str(parent).map_err(|error| unwritable(&error))?;
        map.insert(fender_wire::trace::PARENT, parent);
    }
    // Trailers go both ways; gRPC asks whether they do.
    map.insert(TE, HeaderValue::from_static("trailers"));
    if let Framing::Length(length) = head.framing() {
        map.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(request)
}

fn breaks(why: &(impl ToString + ?Sized)) -> Fault {
    UpstreamFault::Breaks(why.to_string()).into()
}
