//! The system's resolver, `getaddrinfo`, with a bound on the number of blocked threads.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{Arc, LazyLock, Mutex},
    task::{Context, Poll},
    vec,
};

use async_trait::async_trait;
use enlist::backend::MutexExt as _;
use futures::{FutureExt, future::BoxFuture};
use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::Semaphore;
use tower::Service;

use super::lookup::Lookup;

/// Maximum number of threads of the process that are blocked by lookups.
const MAX_THREADS: usize = 32;

type Resolve = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Runs one lookup at a time for each name, and a limited number in total. `getaddrinfo` blocks its thread, has no
/// deadline that a caller could set and cannot be cancelled: after a caller gave up, the thread stays blocked, and the
/// next lookup of the name waits for it.
pub(super) struct System {
    resolve: Arc<Resolve>,
    threads: Arc<Semaphore>,
    /// One permit for each name, held by its thread.
    names: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl fmt::Debug for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("System").field("idle_threads", &self.threads.available_permits()).finish_non_exhaustive()
    }
}

impl System {
    /// The resolver of this process.
    pub(super) fn of_process() -> Arc<Self> {
        static OF_PROCESS: LazyLock<Arc<System>> =
            LazyLock::new(|| Arc::new(System::new(|host, port| Ok((host, port).to_socket_addrs()?.collect()))));
        Arc::clone(&OF_PROCESS)
    }

    fn new(resolve: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        Self { resolve: Arc::new(resolve), threads: Arc::new(Semaphore::new(MAX_THREADS)), names: Mutex::default() }
    }

    fn name(&self, host: &str) -> Arc<Semaphore> {
        let mut names = self.names.locked();
        // The other names have no lookup, running or waiting.
        names.retain(|_, name| Arc::strong_count(name) > 1);
        Arc::clone(names.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }
}

#[async_trait]
impl Lookup for System {
    async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let name = self.name(host).acquire_owned().await.map_err(io::Error::other)?;
        let thread = Arc::clone(&self.threads).acquire_owned().await.map_err(io::Error::other)?;
        let (resolve, host) = (Arc::clone(&self.resolve), host.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let _until_it_returns = (name, thread);
            resolve(&host, port)
        });
        found.await.map_err(io::Error::other)?
    }
}

/// Lookup of the names of endpoints, for hyper's connector.
#[derive(Clone, Debug)]
pub(crate) struct Names(Arc<System>);

impl Names {
    /// A lookup by the system's resolver.
    pub(crate) fn new() -> Self {
        Self(System::of_process())
    }
}

impl Service<Name> for Names {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let system = Arc::clone(&self.0);
        // The connector sets the port.
        async move { Ok(system.lookup(name.as_str(), 0).await?.into_iter()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::poll_fn,
        pin::pin,
        sync::{
            Condvar,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use hyper_util::client::legacy::connect::HttpConnector;

    use enlist_testkit::{eventually, soon};

    /// A resolver that blocks until `answer`.
    #[derive(Default)]
    struct Silent {
        asked: AtomicUsize,
        answers: Mutex<bool>,
        changed: Condvar,
    }

    impl Silent {
        fn system(self: &Arc<Self>) -> System {
            let silent = Arc::clone(self);
            System::new(move |_, port| {
                silent.asked.fetch_add(1, Ordering::SeqCst);
                let answers = silent.answers.lock().unwrap();
                let _answers = silent.changed.wait_while(answers, |answers| !*answers).unwrap();
                Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))])
            })
        }

        fn answer(&self) {
            *self.answers.lock().unwrap() = true;
            self.changed.notify_all();
        }

        async fn asked(&self, times: usize) {
            eventually("so many lookups hang", || async {
                let asked = self.asked.load(Ordering::SeqCst);
                if asked == times { Ok(()) } else { Err(asked) }
            })
            .await;
        }
    }

    #[tokio::test]
    async fn repeated_lookups_that_hang_block_one_thread() {
        let silent = Arc::new(Silent::default());
        let system = silent.system();
        for _ in 0..100 {
            assert!(futures::poll!(system.lookup("slow.example", 80)).is_pending());
            silent.asked(1).await;
        }
        silent.answer();
        assert_eq!(soon("the addresses", system.lookup("slow.example", 80)).await.unwrap().len(), 1);
        assert_eq!(silent.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn dials_to_a_hanging_name_block_one_thread() {
        let silent = Arc::new(Silent::default());
        let names = Names(Arc::new(silent.system()));
        for _ in 0..100 {
            let mut tcp = HttpConnector::new_with_resolver(names.clone());
            poll_fn(|cx| tcp.poll_ready(cx)).await.unwrap();
            let mut dial = pin!(tcp.call(http::Uri::from_static("http://slow.example:80")));
            assert!(futures::poll!(&mut dial).is_pending());
            silent.asked(1).await;
        }
        silent.answer();
    }

    #[tokio::test]
    async fn lookups_that_hang_block_few_threads() {
        let silent = Arc::new(Silent::default());
        let system = silent.system();
        for name in 0..2 * MAX_THREADS {
            assert!(futures::poll!(system.lookup(&format!("slow{name}.example"), 80)).is_pending());
        }
        silent.asked(MAX_THREADS).await;
        // An address needs no lookup.
        assert_eq!(soon("the addresses", system.lookup("::1", 80)).await.unwrap(), ["[::1]:80".parse().unwrap()]);
        silent.answer();
        soon("the addresses", system.lookup("other.example", 80)).await.unwrap();
        assert_eq!(silent.asked.load(Ordering::SeqCst), MAX_THREADS + 1);
        eventually("nothing is kept of names that nobody looks up", || async {
            drop(system.name("other.example"));
            let names = system.names.lock().unwrap().len();
            if names == 1 { Ok(()) } else { Err(names) }
        })
        .await;
    }
}
