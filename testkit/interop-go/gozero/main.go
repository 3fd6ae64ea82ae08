// What go-zero offers: a zrpc server that publishes its address, a subscriber, a zrpc client.
package main

import (
	. "enlist/interop-go/common"

	"github.com/zeromicro/go-zero/core/conf"
	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/core/proc"
	"github.com/zeromicro/go-zero/zrpc"
	"google.golang.org/grpc"
)

// The server has a health service of its own.
func server(arguments []string) {
	address := FreeAddress()
	config := zrpc.RpcServerConf{}
	Check(conf.FillDefault(&config))
	config.ListenOn, config.Etcd = address, discov.EtcdConf{Hosts: Endpoints(), Key: arguments[0]}
	config.DevServer.Enabled, config.Log.Level = false, "error"
	go zrpc.MustNewServer(config, func(*grpc.Server) {}).Start()
	Say("serves", address)
	// As it does when it is terminated.
	Leave(proc.WrapUp)
}

func follow(arguments []string) {
	found, err := discov.NewSubscriber(Endpoints(), arguments[0])
	Check(err)
	var view View
	show := func() { view.Show(append([]string(nil), found.Values()...)) }
	found.AddListener(show)
	show()
	config := zrpc.RpcClientConf{}
	Check(conf.FillDefault(&config))
	config.Etcd = discov.EtcdConf{Hosts: Endpoints(), Key: arguments[0]}
	config.NonBlock = true
	conn := zrpc.MustNewClient(config).Conn()
	for {
		Line()
		Call(conn)
	}
}

func main() {
	logx.Disable()
	Run(map[string]func([]string){"server": server, "client": follow})
}
