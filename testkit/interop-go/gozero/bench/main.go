// Measurements of go-zero's `discov`: its subscriber, as its resolver uses it, and its publisher.
package main

import (
	. "enlist/interop-go/common"
	"enlist/interop-go/common/bench"

	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
)

func follow(arguments []string) {
	// Subscribers share a client, which is connected then.
	_, err := discov.NewSubscriber(Endpoints(), "connected?")
	Check(err)
	view := bench.Follow(arguments[1])
	go func() {
		found, err := discov.NewSubscriber(Endpoints(), arguments[0])
		Check(err)
		show := func() {
			addresses := found.Values()
			view.Show(len(addresses), bench.Marked(addresses))
		}
		found.AddListener(show)
		show()
	}()
	view.Answer(nil)
}

// Each instance has a publisher and a lease. They share a client.
func register(arguments []string) {
	Check(discov.NewPublisher(Endpoints(), "connected?", "").KeepAlive())
	bench.Register(arguments[1], func(_, number int) {
		Check(discov.NewPublisher(Endpoints(), arguments[0], bench.Address(number)).KeepAlive())
	})
}

// Publishers and subscribers share a client, too.
func steady(arguments []string) {
	Check(discov.NewPublisher(Endpoints(), "connected?", "").KeepAlive())
	bench.Steady(arguments, func(service string, _, number int) {
		Check(discov.NewPublisher(Endpoints(), service, bench.Address(number)).KeepAlive())
	}, func(service string, show func(count int)) {
		found, err := discov.NewSubscriber(Endpoints(), service)
		Check(err)
		listener := func() { show(len(found.Values())) }
		found.AddListener(listener)
		listener()
	})
}

func main() {
	logx.Disable()
	bench.Measure(map[string]func([]string){"follow": follow, "register": register, "steady": steady})
}
