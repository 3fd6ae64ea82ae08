// What go-zero offers: a zrpc server that publishes its address, a subscriber, a zrpc client, and the configurator of
// its configuration centre.
package main

import (
	"slices"
	"strconv"
	"time"

	. "enlist/interop-go/common"

	"github.com/zeromicro/go-zero/core/conf"
	configurator "github.com/zeromicro/go-zero/core/configcenter"
	"github.com/zeromicro/go-zero/core/configcenter/subscriber"
	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/core/proc"
	"github.com/zeromicro/go-zero/zrpc"
	"google.golang.org/grpc"
)

func serverConfig(service, address string) zrpc.RpcServerConf {
	config := zrpc.RpcServerConf{}
	Check(conf.FillDefault(&config))
	config.ListenOn, config.Etcd = address, discov.EtcdConf{Hosts: Endpoints(), Key: service}
	config.DevServer.Enabled, config.Log.Level = false, "error"
	// The machine of a test may be busy, and a busy server would refuse calls.
	config.CpuThreshold = 0
	return config
}

// The server has a health service of its own.
func server(arguments []string) {
	address := FreeAddress()
	go zrpc.MustNewServer(serverConfig(arguments[0], address), func(*grpc.Server) {}).Start()
	Say("serves", address)
	// As it does when it is terminated.
	Leave(proc.WrapUp)
}

// A publication with an id of its own, which is overwritten with another address at each line.
func changing(arguments []string) {
	for _, address := range []string{FreeAddress(), Serve().String()} {
		Check(discov.NewPublisher(Endpoints(), arguments[0], address, discov.WithId(7)).KeepAlive())
		Say("serves", address)
		Line()
	}
}

// A publication of an address at which another program serves.
func publish(arguments []string) {
	service, address := arguments[0], arguments[1]
	Check(discov.NewPublisher(Endpoints(), service, address).KeepAlive())
	Say("published")
	Leave(func() {
		// As it does when it is terminated. The lease is revoked in the background.
		proc.WrapUp()
		awaitAbsence(service, address)
	})
}

// Waits until an address is not found, for a few seconds at most: after an error of its watch, a publisher leaves a
// former registration behind, which lasts until the program has ended.
func awaitAbsence(service, address string) {
	found, err := discov.NewSubscriber(Endpoints(), service)
	Check(err)
	end := time.Now().Add(3 * time.Second)
	for slices.Contains(found.Values(), address) && time.Now().Before(end) {
		time.Sleep(10 * time.Millisecond)
	}
}

// A server of the fleet. The library handles SIGTERM.
func member(arguments []string) {
	address := FreeAddress()
	server := zrpc.MustNewServer(serverConfig(arguments[0], address), func(server *grpc.Server) { Greet(server, address) })
	defer server.Stop()
	go ReadToEnd()
	Say("serves", address)
	server.Start()
}

func connect(service string) zrpc.Client {
	config := zrpc.RpcClientConf{}
	Check(conf.FillDefault(&config))
	config.Etcd = discov.EtcdConf{Hosts: Endpoints(), Key: service}
	config.NonBlock = true
	return zrpc.MustNewClient(config)
}

func follow(arguments []string) {
	found, err := discov.NewSubscriber(Endpoints(), arguments[0])
	Check(err)
	var view View
	show := func() { view.Show(append([]string(nil), found.Values()...)) }
	found.AddListener(show)
	show()
	conn := connect(arguments[0]).Conn()
	for {
		Line()
		Call(conn)
	}
}

func call(arguments []string) { KeepCalling(HelloOver(connect(arguments[0]).Conn())) }

// Publishes an instance as it is given, for a comparison of the bytes.
func write(arguments []string) {
	given := Instance(arguments[0])
	var options []discov.PubOption
	if id := given.Option("id"); id != "" {
		fixed, err := strconv.ParseInt(id, 10, 64)
		Check(err)
		options = append(options, discov.WithId(fixed))
	}
	Check(discov.NewPublisher(Endpoints(), given.Service, given.Address(0), options...).KeepAlive())
	Say("wrote")
	ReadToEnd()
}

type settings struct {
	Level string `json:"level"`
	Limit int    `json:"limit"`
}

// Follows one key, which has to exist.
func configure(arguments []string) {
	source, err := subscriber.NewEtcdSubscriber(subscriber.EtcdConf{Hosts: Endpoints(), Key: arguments[0]})
	Check(err)
	center, err := configurator.NewConfigCenter[settings](configurator.Config{Type: "json"}, source)
	Check(err)
	show := func() {
		if now, err := center.GetConfig(); err != nil {
			Say("fails", err)
		} else {
			Say("sees", now.Level, now.Limit)
		}
	}
	center.AddListener(show)
	show()
	Line()
}

func main() {
	logx.Disable()
	Run(map[string]func([]string){
		"server": server, "changing": changing, "client": follow, "member": member, "call": call, "write": write,
		"config": configure, "publish": publish,
	})
}
