package main

import (
	"context"

	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/pkg/streaming"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// What kitex's generator makes of gRPC's health service: the messages with an encoding, and the method's handler.

type checkRequest struct{ Message *healthpb.HealthCheckRequest }

func (request *checkRequest) Marshal(out []byte) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(out, request.Message)
}

func (request *checkRequest) Unmarshal(in []byte) error {
	request.Message = new(healthpb.HealthCheckRequest)
	return proto.Unmarshal(in, request.Message)
}

type checkResponse struct{ Message *healthpb.HealthCheckResponse }

func (response *checkResponse) Marshal(out []byte) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(out, response.Message)
}

func (response *checkResponse) Unmarshal(in []byte) error {
	response.Message = new(healthpb.HealthCheckResponse)
	return proto.Unmarshal(in, response.Message)
}

// A call over gRPC is a stream with one message in each direction.
func check(ctx context.Context, handler, arguments, _ any) error {
	stream := arguments.(*streaming.Args).Stream
	request := new(healthpb.HealthCheckRequest)
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	answer, err := handler.(healthpb.HealthServer).Check(ctx, request)
	if err != nil {
		return err
	}
	return stream.SendMsg(answer)
}

func healthInfo() *serviceinfo.ServiceInfo {
	method := serviceinfo.NewMethodInfo(check,
		func() any { return new(checkRequest) },
		func() any { return new(checkResponse) },
		false,
		serviceinfo.WithStreamingMode(serviceinfo.StreamingUnary),
	)
	return &serviceinfo.ServiceInfo{
		ServiceName:  "Health",
		HandlerType:  (*healthpb.HealthServer)(nil),
		Methods:      map[string]serviceinfo.MethodInfo{"Check": method},
		PayloadCodec: serviceinfo.Protobuf,
		Extra:        map[string]any{serviceinfo.PackageName: "grpc.health.v1", "streaming": true},
	}
}
