package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/xds" // registers the scheme xds
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func main() {
	conn, err := grpc.NewClient("xds:///greeter", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	for number := range 10 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		reply := new(wrapperspb.StringValue)
		err := conn.Invoke(ctx, "/hello.Greeter/SayHello", wrapperspb.String(fmt.Sprintf("caller %d", number)), reply)
		cancel()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(reply.Value)
	}
}
