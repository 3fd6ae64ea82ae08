// What etcd's own Go client offers: naming endpoints with grpc-go's resolver, locks and elections of its concurrency
// package. In addition gobase's lock, which is a few lines on that client.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	. "enlist/interop-go/common"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func client() *clientv3.Client {
	etcd, err := clientv3.New(clientv3.Config{Endpoints: Endpoints(), DialTimeout: 5 * time.Second})
	Check(err)
	return etcd
}

// A lease that is kept alive.
func kept(etcd *clientv3.Client) clientv3.LeaseID {
	lease, err := etcd.Grant(context.Background(), 5)
	Check(err)
	alive, err := etcd.KeepAlive(context.Background(), lease.ID)
	Check(err)
	go func() {
		for range alive {
		}
	}()
	return lease.ID
}

// A server that registers with the naming endpoints.
func server(arguments []string) {
	target := arguments[0]
	etcd, address := client(), Serve().String()
	lease := kept(etcd)
	manager, err := endpoints.NewManager(etcd, target)
	Check(err)
	key := target + "/" + address
	Check(manager.AddEndpoint(context.Background(), key, endpoints.Endpoint{Addr: address}, clientv3.WithLease(lease)))
	Say("serves", address)
	Leave(func() { Check(manager.DeleteEndpoint(context.Background(), key)) })
}

// A server whose endpoint is overwritten with other metadata at each line.
func changing(arguments []string) {
	target, etcd, address := arguments[0], client(), Serve().String()
	lease := kept(etcd)
	manager, err := endpoints.NewManager(etcd, target)
	Check(err)
	for _, team := range []string{"blue", "green"} {
		endpoint := endpoints.Endpoint{Addr: address, Metadata: map[string]string{"team": team}}
		Check(manager.AddEndpoint(context.Background(), target+"/"+address, endpoint, clientv3.WithLease(lease)))
		Say("serves", address)
		Line()
	}
}

// An endpoint as text: the address, and an entry of its metadata.
func text(endpoint endpoints.Endpoint) string {
	metadata, _ := endpoint.Metadata.(map[string]any)
	team, _ := metadata["team"].(string)
	return endpoint.Addr + ",team=" + team
}

// The metadata of an instance as Go's users store it. With the option, names that end in `.json` have JSON; the name
// `.json` has the whole metadata.
func metadata(given Given) any {
	if len(given.Metadata) == 0 {
		return nil
	}
	if given.Options["typed_metadata"] != true {
		return given.Metadata
	}
	if whole, found := given.Metadata[".json"]; found {
		return json.RawMessage(whole)
	}
	typed := map[string]any{}
	for name, text := range given.Metadata {
		if plain, is := strings.CutSuffix(name, ".json"); is {
			typed[plain] = json.RawMessage(text)
		} else {
			typed[name] = text
		}
	}
	return typed
}

// Adds an endpoint as it is given, for a comparison of the bytes.
func write(arguments []string) {
	given := Instance(arguments[0])
	manager, err := endpoints.NewManager(client(), given.Service)
	Check(err)
	endpoint := endpoints.Endpoint{Addr: given.Address(0), Metadata: metadata(given)}
	Check(manager.AddEndpoint(context.Background(), given.Service+"/"+given.ID, endpoint))
	Say("wrote")
	ReadToEnd()
}

// A client that follows the endpoints, and calls through grpc-go's resolver.
func follow(arguments []string) {
	target := arguments[0]
	etcd := client()
	manager, err := endpoints.NewManager(etcd, target)
	Check(err)
	updates, err := manager.NewWatchChannel(context.Background())
	Check(err)
	go func() {
		var view View
		found := map[string]string{}
		view.Show(nil)
		for batch := range updates {
			for _, update := range batch {
				if update.Op == endpoints.Delete {
					delete(found, update.Key)
				} else {
					found[update.Key] = text(update.Endpoint)
				}
			}
			var addresses []string
			for _, address := range found {
				addresses = append(addresses, address)
			}
			view.Show(addresses)
		}
		Say("the watch has ended")
	}()
	builder, err := resolver.NewBuilder(etcd)
	Check(err)
	conn, err := grpc.NewClient("etcd:///"+target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(builder), grpc.WithDefaultServiceConfig(`{"loadBalancingPolicy":"round_robin"}`))
	Check(err)
	for {
		Line()
		Call(conn)
	}
}

// A session that tells when it is over, with the TTL in seconds that is given, or 5.
func session(given []string) *concurrency.Session {
	ttl := 5
	if len(given) > 0 {
		seconds, err := strconv.Atoi(given[0])
		Check(err)
		ttl = seconds
	}
	opened, err := concurrency.NewSession(client(), concurrency.WithTTL(ttl))
	Check(err)
	go func() {
		<-opened.Done()
		Say("lost")
	}()
	return opened
}

// Queues for a lock, holds it until a line comes, releases it, and queues again at the next line.
func lock(arguments []string) {
	mutex := concurrency.NewMutex(session(arguments[1:]), arguments[0])
	for {
		Check(mutex.Lock(context.Background()))
		Say("locked", mutex.Key())
		Line()
		Check(mutex.Unlock(context.Background()))
		Say("unlocked")
		Line()
	}
}

// Campaigns, leads until a line comes, resigns, and campaigns again at the next line.
func elect(arguments []string) {
	election := concurrency.NewElection(session(arguments[2:]), arguments[0])
	for {
		Check(election.Campaign(context.Background(), arguments[1]))
		Say("leads", arguments[1])
		Line()
		Check(election.Resign(context.Background()))
		Say("resigned")
		Line()
	}
}

// Prints the value of the leader.
func leader(arguments []string) {
	response, err := concurrency.NewElection(session(nil), arguments[0]).Leader(context.Background())
	Check(err)
	Say("leader", string(response.Kvs[0].Value))
}

// Returns whether the key could be created under a new lease, which is renewed from then on as long as the client
// lives. That is the protocol of gobase's lock: the key itself is the lock of the client that creates it.
func createHeld(etcd *clientv3.Client, key string, ttl int64) bool {
	ctx := context.Background()
	lease, err := etcd.Grant(ctx, ttl)
	Check(err)
	renewals, err := etcd.KeepAlive(ctx, lease.ID)
	Check(err)
	go func() {
		for range renewals {
		}
	}()
	absent := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
	outcome, err := etcd.Txn(ctx).If(absent).Then(clientv3.OpPut(key, "占用", clientv3.WithLease(lease.ID))).Commit()
	Check(err)
	return outcome.Succeeded
}

// Tries to get gobase's lock, again at each line, until it has it; deletes its key, as gobase's users do, at the next
// one.
func gobase(arguments []string) {
	etcd := client()
	for !createHeld(etcd, arguments[0], 5) {
		Say("busy")
		Line()
	}
	Say("locked")
	Line()
	_, err := etcd.KV.Delete(context.TODO(), arguments[0])
	Check(err)
	Say("deleted")
	Line()
}

// Deletes what kitex's `Deregister` deletes (kitex-contrib/registry-etcd v0.2.6, common.go:19-26 and
// etcd_registry.go:267-280).
func kitexDeregister(arguments []string) {
	key := fmt.Sprintf("kitex/registry-etcd/%v/", arguments[0]) + arguments[1]
	_, err := client().Delete(context.Background(), key)
	Check(err)
	Say("deregistered", arguments[1])
	Line()
}

// Revokes the leases of all keys under a prefix, as an operator may.
func revoke(arguments []string) {
	etcd := client()
	answer, err := etcd.Get(context.Background(), arguments[0], clientv3.WithPrefix())
	Check(err)
	for _, pair := range answer.Kvs {
		_, err := etcd.Revoke(context.Background(), clientv3.LeaseID(pair.Lease))
		Check(err)
	}
	Say("revoked", len(answer.Kvs))
}

// Writes a value, as `etcdctl put` does.
func put(arguments []string) {
	_, err := client().Put(context.Background(), arguments[0], arguments[1])
	Check(err)
	Say("put")
}

func remove(arguments []string) {
	_, err := client().Delete(context.Background(), arguments[0])
	Check(err)
	Say("deleted")
}

// Follows the keys with a prefix as confd does: it reads all of them at each sign of a change.
func keys(arguments []string) {
	etcd := client()
	var view View
	changes := etcd.Watch(context.Background(), arguments[0], clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	for range changes {
		answer, err := etcd.Get(context.Background(), arguments[0], clientv3.WithPrefix())
		Check(err)
		var pairs []string
		for _, pair := range answer.Kvs {
			pairs = append(pairs, string(pair.Key)+"="+string(pair.Value))
		}
		view.Show(pairs)
	}
}

func main() {
	Run(map[string]func([]string){
		"server": server, "changing": changing, "client": follow, "lock": lock, "elect": elect, "leader": leader,
		"gobase-lock": gobase, "kitex-deregister": kitexDeregister, "revoke": revoke, "write": write, "put": put,
		"delete": remove, "keys": keys,
	})
}
