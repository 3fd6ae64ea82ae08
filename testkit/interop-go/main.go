// Programs on the Go libraries that services in the field use, for `cargo xtask interop`: etcd's naming endpoints with grpc-go's
// resolver, go-kit's endpointer and balancer, etcd's concurrency package, gobase's lock, kitex's deregistration. Each prints a line for everything that happens and goes
// on at a line on its standard input, or ends with it.
//
// Built without network from Debian's packages, in GOPATH mode:
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o interop ./testkit/interop-go
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/go-kit/kit/endpoint"
	"github.com/go-kit/kit/log"
	"github.com/go-kit/kit/sd"
	"github.com/go-kit/kit/sd/lb"
	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
	"go.etcd.io/etcd/clientv3/naming/endpoints"
	"go.etcd.io/etcd/clientv3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

var input = bufio.NewReader(os.Stdin)

func check(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

// Waits for a line; its end ends the program.
func line() string {
	text, err := input.ReadString('\n')
	if err != nil {
		os.Exit(0)
	}
	return strings.TrimSpace(text)
}

func client() *clientv3.Client {
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Getenv("ENLIST_ENDPOINTS")}, DialTimeout: 5 * time.Second})
	check(err)
	return etcd
}

// A lease that is kept alive.
func kept(etcd *clientv3.Client) clientv3.LeaseID {
	lease, err := etcd.Grant(context.Background(), 5)
	check(err)
	alive, err := etcd.KeepAlive(context.Background(), lease.ID)
	check(err)
	go func() {
		for range alive {
		}
	}()
	return lease.ID
}

// Serves gRPC health at a free port.
func serve() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { check(server.Serve(listener)) }()
	return listener.Addr().String()
}

// A server that registers with etcd's own naming endpoints until it is told to leave.
func namingServer(target string) {
	etcd, address := client(), serve()
	lease := kept(etcd)
	manager, err := endpoints.NewManager(etcd, target)
	check(err)
	key := target + "/" + address
	check(manager.AddEndpoint(context.Background(), key, endpoints.Endpoint{Addr: address}, clientv3.WithLease(lease)))
	fmt.Println("registered", address)
	line()
	check(manager.DeleteEndpoint(context.Background(), key))
	fmt.Println("left")
	line()
}

// A client on grpc-go's resolver for etcd that makes one call per line.
func namingClient(target string) {
	builder, err := resolver.NewBuilder(client())
	check(err)
	conn, err := grpc.Dial("etcd:///"+target, grpc.WithInsecure(), grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(`{"loadBalancingPolicy":"round_robin"}`))
	check(err)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		cancel()
		check(err)
		fmt.Println("answered", answer.Status)
		line()
	}
}

// What go-kit's sd/etcdv3 does, on the same client: Debian's go-kit comes without that package.
type instancer struct{ events chan sd.Event }

func newInstancer(etcd *clientv3.Client, prefix string) *instancer {
	found := &instancer{events: make(chan sd.Event, 16)}
	entries := func() {
		response, err := etcd.Get(context.Background(), prefix, clientv3.WithPrefix())
		check(err)
		var instances []string
		for _, pair := range response.Kvs {
			instances = append(instances, string(pair.Value))
		}
		found.events <- sd.Event{Instances: instances}
	}
	watch := etcd.Watch(context.Background(), prefix, clientv3.WithPrefix())
	entries()
	go func() {
		for range watch {
			entries()
		}
	}()
	return found
}

func (found *instancer) Register(to chan<- sd.Event) {
	go func() {
		for event := range found.events {
			to <- event
		}
	}()
}
func (found *instancer) Deregister(chan<- sd.Event) {}
func (found *instancer) Stop()                      {}

// A client on go-kit's endpointer and balancer that says where its call goes, once per line.
func kitClient(prefix string) {
	factory := func(instance string) (endpoint.Endpoint, io.Closer, error) {
		return func(context.Context, interface{}) (interface{}, error) { return instance, nil }, nil, nil
	}
	endpointer := sd.NewEndpointer(newInstancer(client(), prefix), factory, log.NewNopLogger())
	retry := lb.Retry(100, 10*time.Second, lb.NewRoundRobin(endpointer))
	for {
		answer, err := retry(context.Background(), nil)
		if err != nil {
			fmt.Println("nobody")
		} else {
			fmt.Println("calls", answer)
		}
		line()
	}
}

// A registration as go-kit's registrar makes it: a raw value under a lease.
func kitServer(key, value string) {
	etcd := client()
	lease := kept(etcd)
	_, err := etcd.Put(context.Background(), key, value, clientv3.WithLease(lease))
	check(err)
	fmt.Println("registered", value)
	line()
	_, err = etcd.Delete(context.Background(), key)
	check(err)
	fmt.Println("left")
	line()
}

// Queues for a lock, holds it until a line comes, releases it, and queues again at the next line.
func lock(name string) {
	session, err := concurrency.NewSession(client(), concurrency.WithTTL(5))
	check(err)
	mutex := concurrency.NewMutex(session, name)
	for {
		check(mutex.Lock(context.Background()))
		fmt.Println("locked", mutex.Key())
		line()
		check(mutex.Unlock(context.Background()))
		fmt.Println("unlocked")
		line()
	}
}

// Campaigns, leads until a line comes, and resigns.
func elect(name, value string) {
	session, err := concurrency.NewSession(client(), concurrency.WithTTL(5))
	check(err)
	election := concurrency.NewElection(session, name)
	check(election.Campaign(context.Background(), value))
	fmt.Println("leads", value)
	line()
	check(election.Resign(context.Background()))
	fmt.Println("resigned")
	line()
}

// Deletes what kitex's `Deregister` deletes (kitex-contrib/registry-etcd v0.2.6, common.go:19-26 and etcd_registry.go:267-280).
func kitexDeregister(serviceName, addr string) {
	key := fmt.Sprintf("kitex/registry-etcd/%v/", serviceName) + addr
	_, err := client().Delete(context.Background(), key)
	check(err)
	fmt.Println("deregistered", addr)
	line()
}

// gobase's `etcd.Lock`, but for its logs (ChenLong-dev/gobase at 91de96c, etcd/etcd.go:151-208).
func gobaseLock(etcd *clientv3.Client, lockKey string, ttl int64) bool {
	ctx, cancel := context.WithTimeout(context.TODO(), time.Second*30)
	defer cancel()
	leaseGrantResponse, err := etcd.Lease.Grant(ctx, ttl)
	check(err)
	leaseId := leaseGrantResponse.ID
	leaseKeepAliveChan, err := etcd.Lease.KeepAlive(context.TODO(), leaseId)
	check(err)
	go func() {
		defer etcd.Revoke(context.TODO(), leaseId)
		for {
			select {
			case leaseKeepAliveResponse := <-leaseKeepAliveChan:
				if leaseKeepAliveResponse == nil {
					return
				}
			}
		}
	}()
	txn := etcd.KV.Txn(context.TODO())
	txn.If(clientv3.Compare(clientv3.CreateRevision(lockKey), "=", 0)).Then(
		clientv3.OpPut(lockKey, "占用", clientv3.WithLease(leaseId))).Else(
		clientv3.OpGet(lockKey))
	txnResponse, err := txn.Commit()
	check(err)
	return txnResponse.Succeeded
}

// Tries to get gobase's lock, again at each line, until it has it; deletes its key, as gobase's users do, at the next one.
func gobase(lockKey string) {
	etcd := client()
	for !gobaseLock(etcd, lockKey, 5) {
		fmt.Println("busy")
		line()
	}
	fmt.Println("locked")
	line()
	_, err := etcd.KV.Delete(context.TODO(), lockKey)
	check(err)
	fmt.Println("deleted")
	line()
}

// Says who leads.
func leader(name string) {
	session, err := concurrency.NewSession(client(), concurrency.WithTTL(5))
	check(err)
	response, err := concurrency.NewElection(session, name).Leader(context.Background())
	check(err)
	fmt.Println("leader", string(response.Kvs[0].Value))
}

func main() {
	arguments := os.Args[2:]
	switch os.Args[1] {
	case "naming-server":
		namingServer(arguments[0])
	case "naming-client":
		namingClient(arguments[0])
	case "kit-server":
		kitServer(arguments[0], arguments[1])
	case "kit-client":
		kitClient(arguments[0])
	case "lock":
		lock(arguments[0])
	case "kitex-deregister":
		kitexDeregister(arguments[0], arguments[1])
	case "gobase-lock":
		gobase(arguments[0])
	case "elect":
		elect(arguments[0], arguments[1])
	case "leader":
		leader(arguments[0])
	}
}
