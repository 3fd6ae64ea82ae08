//! etcd in a container: an image built `FROM scratch` around the local binary, so that no registry is needed.
//!
//! Futures are boxed: the code of a future is compiled in the program that polls it, and that of the client for Docker
//! would be in each test program, where it takes half of the time.

use std::{path::PathBuf, pin::Pin, process::Command};

use testcontainers::{
    ContainerAsync, GenericBuildableImage, GenericImage, ImageExt,
    core::{BuildImageOptions, IntoContainerPort},
    runners::{AsyncBuilder, AsyncRunner},
};

use super::provider::binary;

/// Future whose code is compiled in this crate.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Client port within the container.
pub(crate) const PORT: u16 = 2379;

/// One container, with one mapped port for its lifetime.
#[derive(Debug)]
pub(crate) struct EtcdContainer {
    name: String,
    host_network: bool,
    container: Option<ContainerAsync<GenericImage>>,
}

impl EtcdContainer {
    pub(crate) fn new(name: String) -> Self {
        Self { name, host_network: false, container: None }
    }

    /// Starts the container, or restarts it after a kill.
    pub(crate) fn start<'a>(&'a mut self, arguments: &'a [String], port: u16) -> Boxed<'a, Result<(), String>> {
        Box::pin(self.start_or_restart(arguments, port))
    }

    async fn start_or_restart(&mut self, arguments: &[String], port: u16) -> Result<(), String> {
        if let Some(container) = &self.container {
            return container.start().await.map_err(|error| error.to_string());
        }
        let image = image().await?;
        let command = std::iter::once("/etcd".to_owned()).chain(arguments.iter().cloned());
        let request = image.with_exposed_port(PORT.tcp()).with_cmd(command).with_container_name(&self.name);
        let started = if self.host_network {
            request.with_network("host").start().await
        } else {
            request.with_mapped_port(port, PORT.tcp()).start().await
        };
        self.container = Some(started.map_err(|error| error.to_string())?);
        Ok(())
    }

    pub(crate) fn use_host_network(&mut self) {
        self.host_network = true;
    }

    pub(crate) fn pause(&self) -> Boxed<'_, ()> {
        Box::pin(async move {
            let container = self.container.as_ref().expect("it was started");
            container.pause().await.expect("a running container can be frozen");
        })
    }

    pub(crate) fn unpause(&self) -> Boxed<'_, ()> {
        Box::pin(async move {
            let container = self.container.as_ref().expect("it was started");
            container.unpause().await.expect("a frozen container can go on");
        })
    }

    pub(crate) fn kill(&mut self) -> Boxed<'_, ()> {
        Box::pin(async move {
            if let Some(container) = &self.container {
                container.stop_with_timeout(Some(0)).await.expect("a running container can be stopped");
            }
        })
    }

    /// Removes the container with its data.
    pub(crate) fn forget(&mut self) -> Boxed<'_, ()> {
        Box::pin(async move {
            if let Some(container) = self.container.take() {
                container.rm().await.expect("a stopped container can be removed");
            }
        })
    }
}

async fn image() -> Result<GenericImage, String> {
    let etcd = binary();
    let mut dockerfile = "FROM scratch\nCOPY etcd /etcd\n".to_owned();
    let mut image = GenericBuildableImage::new("enlist-test-etcd", version(&etcd)?);
    let libraries = libraries(&etcd);
    for (at, path) in libraries.iter().enumerate() {
        dockerfile = format!("{dockerfile}COPY lib{at} {}\n", path.display());
    }
    image = image.with_dockerfile_string(dockerfile).with_file(etcd, "./etcd");
    for (at, path) in libraries.into_iter().enumerate() {
        image = image.with_file(path, format!("./lib{at}"));
    }
    let options = BuildImageOptions::new().with_skip_if_exists(true);
    image.build_image_with(options).await.map_err(|error| format!("the image could not be built: {error}"))
}

/// Returns the version as a tag.
fn version(etcd: &PathBuf) -> Result<String, String> {
    let output =
        Command::new(etcd).arg("--version").output().map_err(|error| format!("{}: {error}", etcd.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().and_then(|line| line.split_whitespace().last());
    version.map(str::to_owned).ok_or_else(|| format!("{} tells no version", etcd.display()))
}

/// Returns the libraries of the binary; none for a static one.
fn libraries(etcd: &PathBuf) -> Vec<PathBuf> {
    let Ok(output) = Command::new("ldd").arg(etcd).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
