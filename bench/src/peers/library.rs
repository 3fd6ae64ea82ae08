//! The measured libraries: their programs, and the keys and values that they read.

use enlist::{Endpoint, Instance, ServiceRef};
use enlist_etcd::{
    Native,
    layout::{Layout, Writing},
};
use etcd_client::{Client, Txn, TxnOp};
use serde_json::json;

use crate::{
    measure::Result,
    world::{MAX_OPS, instance, range},
};

/// A library, as a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    /// `enlist`.
    Ours,
    /// etcd's Go client, without a library on it.
    Raw,
    /// `naming/endpoints` of etcd's Go client; for locks and elections its package `concurrency`.
    Naming,
    /// go-kit's `sd/etcdv3`.
    GoKit,
    /// go-zero's `discov`.
    GoZero,
    /// kitex's `registry-etcd`.
    Kitex,
    /// kratos' registry on etcd.
    Kratos,
    /// grpc-go's round robin balancer, with the resolver of etcd's Go client.
    GrpcGo,
    /// tonic's balanced channel, over a view of `enlist`.
    Tonic,
    /// Envoy's go-control-plane, over the keys of `enlist`.
    ControlPlane,
}

/// Libraries with a view of a service.
pub(crate) const VIEWS: [Library; 6] =
    [Library::Raw, Library::Naming, Library::GoKit, Library::GoZero, Library::Kitex, Library::Kratos];

/// Libraries of which a process can register many instances.
pub(crate) const REGISTRARS: [Library; 4] = [Library::Raw, Library::Naming, Library::GoZero, Library::Kratos];

/// Commands that etcd's own client and its package `naming` have each.
const DISCOVERY: [&str; 3] = ["follow", "register", "steady"];

impl Library {
    /// Name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "enlist",
            Self::Raw => "clientv3",
            Self::Naming => "naming",
            Self::GoKit => "go-kit",
            Self::GoZero => "go-zero",
            Self::Kitex => "kitex",
            Self::Kratos => "kratos",
            Self::GrpcGo => "grpc-go",
            Self::Tonic => "tonic",
            Self::ControlPlane => "go-control-plane",
        }
    }

    /// Returns the name of the program, and its argument for `verb`.
    pub(crate) fn program(self, verb: &str) -> (&'static str, String) {
        match self {
            // As it is installed.
            Self::Ours if verb == "xds" => ("../dist/agent", verb.to_owned()),
            Self::Ours => ("peer", verb.to_owned()),
            Self::Tonic => ("peer", format!("{verb}-tonic")),
            Self::Raw if DISCOVERY.contains(&verb) => ("bench-etcd", format!("{verb}-raw")),
            Self::Naming if DISCOVERY.contains(&verb) => ("bench-etcd", format!("{verb}-naming")),
            Self::Raw | Self::Naming | Self::GrpcGo => ("bench-etcd", verb.to_owned()),
            Self::GoKit => ("bench-gokit", verb.to_owned()),
            Self::GoZero => ("bench-gozero", verb.to_owned()),
            Self::Kitex => ("bench-kitex", verb.to_owned()),
            Self::Kratos => ("bench-kratos", verb.to_owned()),
            Self::ControlPlane => ("bench-xds", verb.to_owned()),
        }
    }

    /// Returns the name under which the program finds the instances of `service`.
    ///
    /// # Errors
    ///
    /// If the name is not valid.
    pub(crate) fn subject(self, service: &str) -> Result<String> {
        Ok(match self {
            Self::Raw => String::from_utf8(range(&ServiceRef::parse(service)?)?.0)?,
            Self::GoKit => format!("/services/{service}/"),
            _ => service.to_owned(),
        })
    }

    /// Returns key and value of instance `number` at `address`. All but the values of go-kit and go-zero, which are
    /// addresses only, have a version, a zone and a team. The keys have the order of the numbers.
    ///
    /// # Errors
    ///
    /// If the service's name is not valid.
    pub(crate) fn pair(self, service: &str, number: usize, address: &str) -> Result<(Vec<u8>, Vec<u8>)> {
        let id = format!("i-{number:06}");
        let (key, value) = match self {
            Self::Ours | Self::Raw | Self::Tonic | Self::ControlPlane => return native(service, number, address),
            Self::Naming | Self::GrpcGo => {
                let metadata = json!({ "version": "1.4", "zone": "eu-1", "team": "blue" });
                let value = json!({ "Op": 0, "Addr": address, "Metadata": metadata });
                (format!("{service}/{id}"), value.to_string())
            }
            Self::GoKit => (format!("/services/{service}/{id}"), address.to_owned()),
            // Its keys are never written twice, so that of the instance which changes has its address.
            Self::GoZero if number == 0 => (format!("{service}/0{address}"), address.to_owned()),
            Self::GoZero => (format!("{service}/1{number:06}"), address.to_owned()),
            Self::Kitex => {
                let tags = json!({ "version": "1.4", "zone": "eu-1", "team": "blue" });
                let value = json!({ "network": "tcp", "address": address, "weight": 10, "tags": tags });
                (format!("kitex/registry-etcd/{service}/{id}"), value.to_string())
            }
            Self::Kratos => {
                let value = json!({
                    "id": id, "name": service, "version": "1.4", "metadata": { "zone": "eu-1", "team": "blue" },
                    "endpoints": [format!("grpc://{address}")],
                });
                (format!("/microservices/{service}/{id}"), value.to_string())
            }
        };
        Ok((key.into_bytes(), value.into_bytes()))
    }

    /// Returns the prefix of the keys that its program registers for `service`.
    ///
    /// # Errors
    ///
    /// If the service's name is not valid.
    pub(crate) fn registered(self, service: &str) -> Result<String> {
        if self == Self::Raw {
            return Ok(format!("/services/{service}/"));
        }
        let key = String::from_utf8(self.pair(service, 0, &address(0))?.0)?;
        let before = key.find(service).ok_or("the key does not contain the name of the service")?;
        Ok(format!("{}{service}/", &key[..before]))
    }

    /// Stores instances with these addresses without a lease.
    ///
    /// # Errors
    ///
    /// If etcd refuses.
    pub(crate) async fn store(self, client: &mut Client, service: &str, addresses: &[String]) -> Result {
        for (number, address) in addresses.iter().enumerate() {
            let (key, value) = self.pair(service, number, address)?;
            client.put(key, value, None).await?;
        }
        Ok(())
    }

    /// Stores `count` instances of a service without a lease.
    ///
    /// # Errors
    ///
    /// If etcd refuses.
    pub(crate) async fn fill(self, client: &mut Client, service: &str, count: usize) -> Result {
        let numbers: Vec<usize> = (0..count).collect();
        for some in numbers.chunks(MAX_OPS) {
            let put = |number: &usize| {
                let (key, value) = self.pair(service, *number, &address(*number))?;
                Result::Ok(TxnOp::put(key, value, None))
            };
            let puts: Result<Vec<_>> = some.iter().map(put).collect();
            client.txn(Txn::new().and_then(puts?)).await?;
        }
        Ok(())
    }

    /// Returns the change of instance 0 from one address to another.
    ///
    /// # Errors
    ///
    /// If the service's name is not valid.
    pub(crate) fn change(self, service: &str, from: &str, to: &str) -> Result<Txn> {
        let (key, value) = self.pair(service, 0, to)?;
        let mut operations = vec![TxnOp::put(key, value, None)];
        if self == Self::GoZero {
            operations.insert(0, TxnOp::delete(self.pair(service, 0, from)?.0, None));
        }
        Ok(Txn::new().and_then(operations))
    }

    /// Returns the keys of the instances from `first` on, of `count`, as a range.
    ///
    /// # Errors
    ///
    /// If the service's name is not valid.
    pub(crate) fn rest(self, service: &str, first: usize, count: usize) -> Result<(Vec<u8>, Vec<u8>)> {
        let key = |number| Result::Ok(self.pair(service, number, &address(number))?.0);
        Ok((key(first)?, [key(count - 1)?, vec![0]].concat()))
    }
}

fn native(service: &str, number: usize, address: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let (layout, service) = (Native::default(), ServiceRef::parse(service)?);
    let id = instance(number)?.id().clone();
    let instance = Instance::new(id, [Endpoint::parse(format!("grpc://{address}"))?])?;
    let instance = instance.with_version("1.4").with_zone("eu-1").with_metadata("team", "blue");
    let key = layout.key(&service, instance.id(), None)?;
    Ok((key, layout.encode(&service, &instance, &Writing::default())?))
}

/// Returns the name of the service of a library. Layouts share no service.
pub(crate) fn service(library: Library) -> String {
    library.name().replace('-', "")
}

/// Returns the address of an instance.
pub(crate) fn address(number: usize) -> String {
    format!("10.{}.{}.{}:8080", number >> 16 & 0xff, number >> 8 & 0xff, number & 0xff)
}

/// Returns the address of the instance that changes, after that many changes. No other instance has such a one.
pub(crate) fn marked(changes: u32) -> String {
    format!("10.255.{}.{}:8080", changes >> 8 & 0xff, changes & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_order_of_their_numbers() {
        for library in VIEWS.into_iter().chain([Library::Ours]) {
            let key = |number| library.pair("s", number, &address(number)).unwrap().0;
            let keys: Vec<_> = [0, 1, 9, 10, 99_999].map(key).into();
            assert!(keys.is_sorted(), "{library:?}");
            let (first, end) = library.rest("s", 1, 100_000).unwrap();
            assert!(keys[0] < first && keys[1] == first && keys[4] < end, "{library:?}");
        }
    }

    #[test]
    fn only_the_changing_instance_has_its_address() {
        assert_eq!(address(0), "10.0.0.0:8080");
        assert_eq!(address(99_999), "10.1.134.159:8080");
        assert_eq!(marked(258), "10.255.1.2:8080");
    }
}
