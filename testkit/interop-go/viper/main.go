// What viper offers over etcd: its provider `etcd3`, which reads and watches one key, and crypt, on which that provider
// is built and which also writes.
package main

import (
	. "enlist/interop-go/common"

	"github.com/sagikazarmark/crypt/config"
	"github.com/spf13/viper"
	_ "github.com/spf13/viper/remote"
)

// A provider for the watch of viper, which its own type does not offer.
type provider struct{ path string }

func (p provider) Provider() string      { return "etcd3" }
func (p provider) Endpoint() string      { return Endpoints()[0] }
func (p provider) Path() string          { return p.path }
func (p provider) SecretKeyring() string { return "" }

// Reads the key at each line.
func read(arguments []string) {
	values := viper.New()
	Check(values.AddRemoteProvider("etcd3", Endpoints()[0], arguments[0]))
	values.SetConfigType("json")
	for {
		if err := values.ReadRemoteConfig(); err != nil {
			Say("keeps", values.GetString("level"), values.GetInt("limit"))
		} else {
			Say("reads", values.GetString("level"), values.GetInt("limit"))
		}
		Line()
	}
}

// Prints each value that the watch delivers.
func watch(arguments []string) {
	values, _ := viper.RemoteConfig.WatchChannel(provider{arguments[0]})
	Say("watches")
	for value := range values {
		Check(value.Error)
		Say("sees", string(value.Value))
	}
}

func set(arguments []string) {
	manager, err := config.NewStandardEtcdV3ConfigManager(Endpoints())
	Check(err)
	Check(manager.Set(arguments[0], []byte(arguments[1])))
	Say("set")
}

func main() {
	Run(map[string]func([]string){"read": read, "watch": watch, "set": set})
}
