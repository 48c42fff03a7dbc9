//! What is read together, and how often it is opened.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Reading;

use super::*;

#[derive(Clone, Debug, Default)]
struct Shelf(Arc<std::sync::Mutex<HashMap<PathBuf, Result<&'static str, FetchError>>>>);

impl Shelf {
    fn put(&self, path: &str, content: Result<&'static str, FetchError>) {
        self.0.lock().unwrap().insert(path.into(), content);
    }
}

impl ReadFiles for Shelf {
    fn read<'a>(&'a self, path: &'a Path, _: u64) -> Reading<'a> {
        let content = self.0.lock().unwrap().get(path).cloned().unwrap();
        Box::pin(async move { content.map(|text| Secret::from(text.to_owned())) })
    }

    fn read_private<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a> {
        self.read(path, limit)
    }
}

fn pair(shelf: &Shelf) -> (Pair<String>, Arc<AtomicUsize>) {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&opened);
    shelf.put("/file", Ok("sealed"));
    shelf.put("/identity", Ok("key"));
    let open = move |file: &Secret, identity: &Secret| {
        count.fetch_add(1, Ordering::Relaxed);
        let (file, identity) = (file.expose_str().unwrap(), identity.expose_str().unwrap());
        match identity {
            "wrong" => Err(FetchError::Denied("not ours".to_owned())),
            _ => Ok(format!("{file} by {identity}")),
        }
    };
    let files = Arc::new(shelf.clone());
    let pair = Pair::new("/file".as_ref(), "/identity".as_ref(), files, open);
    (pair, opened)
}

#[tokio::test(start_paused = true)]
async fn the_same_contents_are_opened_once_and_others_at_once() {
    let shelf = Shelf::default();
    let (pair, opened) = pair(&shelf);
    let later = async || tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..3 {
        assert_eq!(*pair.read().await.unwrap(), "sealed by key");
        later().await;
    }
    assert_eq!(opened.load(Ordering::Relaxed), 1);
    shelf.put("/file", Ok("sealed anew"));
    assert_eq!(*pair.read().await.unwrap(), "sealed anew by key");
    later().await;
    shelf.put("/identity", Ok("wrong"));
    for _ in 0..3 {
        assert_eq!(
            pair.read().await,
            Err(FetchError::Denied("not ours".to_owned()))
        );
        later().await;
    }
    assert_eq!(opened.load(Ordering::Relaxed), 3);
    shelf.put("/identity", Ok("key"));
    assert_eq!(*pair.read().await.unwrap(), "sealed anew by key");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_gone_is_missing_and_an_identity_that_is_gone_an_outage() {
    let shelf = Shelf::default();
    let (pair, _) = pair(&shelf);
    let gone = || Err(FetchError::Missing("no such file".to_owned()));
    shelf.put("/file", gone());
    assert!(matches!(pair.read().await, Err(FetchError::Missing(_))));
    tokio::time::sleep(Duration::from_millis(100)).await;
    shelf.put("/file", Ok("sealed"));
    shelf.put("/identity", gone());
    let error = pair.read().await.unwrap_err();
    assert!(
        matches!(&error, FetchError::Outage(why) if why.contains("identity")),
        "{error}"
    );
}

/// Looks at one moment are one look, but never the two looks by which a change is believed.
#[tokio::test(start_paused = true)]
async fn what_is_asked_at_one_moment_is_read_once() {
    let shelf = Shelf::default();
    let (pair, _) = pair(&shelf);
    assert_eq!(*pair.read().await.unwrap(), "sealed by key");
    shelf.put("/file", Ok("half"));
    assert_eq!(*pair.read().await.unwrap(), "sealed by key");
    tokio::time::sleep(SAME_MOMENT).await;
    assert_eq!(*pair.read().await.unwrap(), "half by key");
}
