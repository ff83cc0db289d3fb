package apps

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// A streamServer is a gRPC server that sends back the payload of each message.
type streamServer struct {
	grpc_testing.UnimplementedTestServiceServer
}

func (streamServer) FullDuplexCall(s grpc.BidiStreamingServer[grpc_testing.StreamingOutputCallRequest, grpc_testing.StreamingOutputCallResponse]) error {
	for {
		m, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&grpc_testing.StreamingOutputCallResponse{Payload: m.Payload}); err != nil {
			return err
		}
	}
}

func (streamServer) UnaryCall(_ context.Context, m *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	return &grpc_testing.SimpleResponse{Payload: m.Payload}, nil
}

func serveGRPC(t *testing.T, n *netstack.Net, at string) *grpc.Server {
	t.Helper()
	l, err := n.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(s, streamServer{})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-ended; err != nil {
			t.Errorf("Serve ended with %v, want no error", err)
		}
	})
	return s
}

// TestGRPC makes several calls at once, each of which streams in both directions, and a call whose deadline passes. It stops the
// server gracefully during a call, and then calls a new server on the same port.
func TestGRPC(t *testing.T) {
	client, server := nets(t, pipe.Conditions{Delay: time.Millisecond})
	at := serverIP + ":50051"
	s := serveGRPC(t, server, at)
	conn, err := grpc.NewClient("passthrough:///"+at, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return client.DialContext(ctx, "tcp", addr) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := grpc_testing.NewTestServiceClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	const streams, messages, size = 8, 20, 64 << 10
	ended := make(chan error)
	for i := range streams {
		go func() { ended <- echoStream(t, ctx, c, int64(i), messages, size) }()
	}
	for range streams {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}

	// The deadline of this call passes while the client waits for the server.
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	stream, err := c.FullDuplexCall(short)
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call whose deadline passed ended with %v, want DeadlineExceeded", err)
	}

	// During a graceful stop, a call that has begun can end, and the server accepts no new call.
	stream, err = c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := ask(stream, noise(1, size)); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { s.GracefulStop(); close(stopped) }()
	for err == nil { // dial until GracefulStop has closed the listener
		var x net.Conn
		if x, err = client.Dial("tcp", at); err == nil {
			_ = x.Close()
		}
	}
	if err := ask(stream, noise(2, size)); err != nil {
		t.Errorf("an open call during GracefulStop failed: %v", err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("an open call during GracefulStop ended with %v, want EOF", err)
	}
	<-stopped
	if _, err := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a call without a server ended with %v, want Unavailable", err)
	}

	serveGRPC(t, server, at)
	want := noise(3, size)
	res, err := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: want}}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatalf("a call to the new server on the same port failed: %v", err)
	}
	same(t, "answer", res.Payload.Body, want)
}

type duplex = grpc.BidiStreamingClient[grpc_testing.StreamingOutputCallRequest, grpc_testing.StreamingOutputCallResponse]

// ask sends a message and waits for its echo.
func ask(s duplex, body []byte) error {
	if err := s.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: body}}); err != nil {
		return err
	}
	m, err := s.Recv()
	if err == nil && string(m.Payload.Body) != string(body) {
		return errors.New("the echo differs from the message")
	}
	return err
}

// echoStream sends messages without waiting for the echoes. At the same time, it receives the echoes and compares them with the
// messages.
func echoStream(t *testing.T, ctx context.Context, c grpc_testing.TestServiceClient, seed int64, messages, size int) error {
	stream, err := c.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		for i := range messages {
			m := &grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: noise(seed<<32+int64(i), size)}}
			if err := stream.Send(m); err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	for i := range messages {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		same(t, "message", m.Payload.Body, noise(seed<<32+int64(i), size))
	}
	if _, err := stream.Recv(); err != io.EOF {
		return err
	}
	return <-sent
}
