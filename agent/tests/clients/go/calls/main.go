// Calls a service 500 times a second. For each number N on the standard input, it waits until N calls have ended since
// the former report, and prints a report.
//
// The first argument is the target. The second one is a method to call instead of that of the greeter: servers are then
// named by their addresses.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	callers  = 5
	interval = 10 * time.Millisecond
	// Time by which the calls of a caller can be late, and are made up for.
	maxDelay = time.Second
	timeout  = 5 * time.Second
)

type report struct {
	Servers   map[string]int `json:"servers"`
	Failures  []string       `json:"failures"`
	SlowestMs int64          `json:"slowest_ms"`
}

func newReport() report { return report{Servers: map[string]int{}, Failures: []string{}} }

type calls struct {
	sync.Mutex
	changed *sync.Cond
	ended   int
	report  report
}

func (calls *calls) record(server string, failure error, took time.Duration) {
	calls.Lock()
	defer calls.Unlock()
	if failure == nil {
		calls.report.Servers[server]++
	} else {
		text := fmt.Sprintf("%s: %s", status.Code(failure), status.Convert(failure).Message())
		calls.report.Failures = append(calls.report.Failures, text)
	}
	calls.report.SlowestMs = max(calls.report.SlowestMs, took.Milliseconds())
	calls.ended++
	calls.changed.Broadcast()
}

func (calls *calls) print(least int) {
	calls.Lock()
	defer calls.Unlock()
	for calls.ended < least {
		calls.changed.Wait()
	}
	text, err := json.Marshal(calls.report)
	check(err)
	fmt.Println(string(text))
	calls.report, calls.ended = newReport(), 0
}

// A call returns the name of the server.
type call func(context.Context, *grpc.ClientConn) (string, error)

func sayHello(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	reply := new(wrapperspb.StringValue)
	err := conn.Invoke(ctx, "/hello.Greeter/SayHello", wrapperspb.String("caller"), reply)
	words := strings.Split(reply.Value, " ")
	return words[len(words)-1], err
}

// Returns a call of a method whose request may be empty.
func method(path string) call {
	return func(ctx context.Context, conn *grpc.ClientConn) (string, error) {
		var server peer.Peer
		if err := conn.Invoke(ctx, path, new(emptypb.Empty), new(emptypb.Empty), grpc.Peer(&server)); err != nil {
			return "", err
		}
		return server.Addr.String(), nil
	}
}

func callForever(call call, conn *grpc.ClientConn, calls *calls) {
	for due := time.Now(); ; {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		server, err := call(ctx, conn)
		cancel()
		calls.record(server, err, time.Since(begun))
		due = due.Add(interval)
		if earliest := time.Now().Add(-maxDelay); due.Before(earliest) {
			due = earliest
		}
		time.Sleep(time.Until(due))
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	conn, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	calls := &calls{report: newReport()}
	calls.changed = sync.NewCond(calls)
	var call call = sayHello
	if len(os.Args) > 2 {
		call = method(os.Args[2])
	}
	for range callers {
		go callForever(call, conn, calls)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		least, err := strconv.Atoi(lines.Text())
		check(err)
		calls.print(least)
	}
}
