// What kratos offers: an app with its gRPC server and its registry on etcd, discovery, and a client on it; and its
// configuration on etcd.
package main

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	. "enlist/interop-go/common"

	configetcd "github.com/go-kratos/kratos/contrib/config/etcd/v2"
	"github.com/go-kratos/kratos/contrib/registry/etcd/v2"
	"github.com/go-kratos/kratos/v2"
	"github.com/go-kratos/kratos/v2/config"
	"github.com/go-kratos/kratos/v2/log"
	"github.com/go-kratos/kratos/v2/registry"
	kgrpc "github.com/go-kratos/kratos/v2/transport/grpc"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Time that an instance of a test outlives its program; the default is 15 s.
const ttl = 5 * time.Second

func client() *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: Endpoints(), DialTimeout: 5 * time.Second})
	Check(err)
	return client
}

func open(options ...etcd.Option) *etcd.Registry { return etcd.New(client(), options...) }

// Follows the value `level` of the keys with a prefix.
func configure(arguments []string) {
	source, err := configetcd.New(client(), configetcd.WithPath(arguments[0]), configetcd.WithPrefix(true))
	Check(err)
	values := config.New(config.WithSource(source))
	Check(values.Load())
	show := func(_ string, value config.Value) {
		text, err := value.String()
		Check(err)
		Say("sees", text)
	}
	Check(values.Watch("level", show))
	show("level", values.Value("level"))
	Line()
}

// The server has a health service of its own.
func server(arguments []string) {
	var app *kratos.App
	started := func(context.Context) error {
		Say("serves", strings.TrimPrefix(app.Endpoint()[0], "grpc://"))
		return nil
	}
	app = kratos.New(
		kratos.Name(arguments[0]),
		kratos.Version("v1.0.0"),
		kratos.Metadata(map[string]string{"weight": "7"}),
		kratos.Server(kgrpc.NewServer(kgrpc.Address("127.0.0.1:0"))),
		kratos.Registrar(open(etcd.RegisterTTL(ttl))),
		kratos.AfterStart(started),
	)
	go func() { Check(app.Run()) }()
	Leave(func() { Check(app.Stop()) })
}

// A registration that is overwritten with other metadata at each line.
func changing(arguments []string) {
	registrar, address := open(etcd.RegisterTTL(ttl)), Serve().String()
	for _, team := range []string{"blue", "green"} {
		Check(registrar.Register(context.Background(), &registry.ServiceInstance{
			ID: address, Name: arguments[0], Metadata: map[string]string{"team": team},
			Endpoints: []string{"grpc://" + address},
		}))
		Say("serves", address)
		Line()
	}
}

// A server of the fleet. The library handles SIGTERM.
func member(arguments []string) {
	server := kgrpc.NewServer(kgrpc.Address("127.0.0.1:0"))
	endpoint, err := server.Endpoint()
	Check(err)
	Greet(server, endpoint.Host)
	started := func(context.Context) error {
		Say("serves", endpoint.Host)
		return nil
	}
	go ReadToEnd()
	Check(kratos.New(
		kratos.Name(arguments[0]),
		kratos.Server(server),
		kratos.Registrar(open()),
		kratos.AfterStart(started),
	).Run())
}

// Registers an instance as it is given, for a comparison of the bytes.
func write(arguments []string) {
	given := Instance(arguments[0])
	metadata := given.Metadata
	if given.Weight != nil {
		if metadata == nil {
			metadata = map[string]string{}
		}
		metadata["weight"] = fmt.Sprint(*given.Weight)
	}
	var endpoints []string
	for number, endpoint := range given.Endpoints {
		endpoints = append(endpoints, endpoint.Protocol+"://"+given.Address(number))
	}
	registrar := open(etcd.Namespace(given.Option("namespace")))
	Check(registrar.Register(context.Background(), &registry.ServiceInstance{
		ID: given.ID, Name: given.Service, Version: given.Version, Metadata: metadata, Endpoints: endpoints,
	}))
	Say("wrote")
	ReadToEnd()
}

// An instance as text: endpoints, version and metadata.
func text(instance *registry.ServiceInstance) string {
	var metadata []string
	for key, value := range instance.Metadata {
		metadata = append(metadata, key+"="+value)
	}
	sort.Strings(metadata)
	return fmt.Sprintf("%s,%s,%s", strings.Join(instance.Endpoints, "+"), instance.Version, strings.Join(metadata, "+"))
}

func follow(arguments []string) {
	found := open()
	watcher, err := found.Watch(context.Background(), arguments[0])
	Check(err)
	go func() {
		var view View
		for {
			instances, err := watcher.Next()
			if err != nil {
				continue
			}
			var texts []string
			for _, instance := range instances {
				texts = append(texts, text(instance))
			}
			view.Show(texts)
		}
	}()
	conn := connect(found, arguments[0])
	for {
		Line()
		Call(conn)
	}
}

func connect(found registry.Discovery, service string) grpc.ClientConnInterface {
	conn, err := kgrpc.DialInsecure(context.Background(), kgrpc.WithEndpoint("discovery:///"+service),
		kgrpc.WithDiscovery(found), kgrpc.WithTimeout(10*time.Second))
	Check(err)
	return conn
}

func call(arguments []string) { KeepCalling(HelloOver(connect(open(), arguments[0]))) }

func main() {
	log.SetLogger(log.NewFilter(log.DefaultLogger, log.FilterLevel(log.LevelError)))
	Run(map[string]func([]string){
		"server": server, "changing": changing, "client": follow, "member": member, "call": call, "write": write,
		"config": configure,
	})
}
