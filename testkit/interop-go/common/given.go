package common

import (
	"encoding/json"
	"net"
	"strconv"
)

// Given is an instance of a recorded case (backend-etcd/tests/fixtures).
type Given struct {
	Service  string
	Options  map[string]any
	ID       string
	Weight   *int
	Version  string
	Metadata map[string]string

	Endpoints []struct {
		Protocol, Host string
		Port           int
	}
}

// Instance reads a case. Absent parts are null there.
func Instance(text string) Given {
	var read struct {
		Service  string
		Options  map[string]any
		Instance Given
	}
	Check(json.Unmarshal([]byte(text), &read))
	given := read.Instance
	given.Service, given.Options = read.Service, read.Options
	if len(given.Metadata) == 0 {
		given.Metadata = nil
	}
	return given
}

// Option returns the text of an option, or nothing.
func (given Given) Option(name string) string {
	text, _ := given.Options[name].(string)
	return text
}

// Address returns an endpoint as host:port.
func (given Given) Address(number int) string {
	endpoint := given.Endpoints[number]
	return net.JoinHostPort(endpoint.Host, strconv.Itoa(endpoint.Port))
}
