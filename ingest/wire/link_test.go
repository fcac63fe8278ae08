package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// A door is a listening acceptor on loopback for one pretended host.
type door struct {
	*Acceptor
	ln      net.Listener
	peer    holdfast.HostID
	mu      sync.Mutex
	refused []error
	wg      sync.WaitGroup
}

func openDoor(t testing.TB, o LinkOptions) *door {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{Acceptor: NewAcceptor(o), ln: ln, peer: holdfast.HostID{ID: holdfast.NewID()}}
	ctx, cancel := context.WithCancel(context.Background())
	d.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			d.wg.Go(func() {
				d.mu.Lock()
				peer := d.peer
				d.mu.Unlock()
				if err := d.Serve(ctx, conn, peer); err != nil {
					d.mu.Lock()
					d.refused = append(d.refused, err)
					d.mu.Unlock()
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		d.Close()
		cancel()
		d.wg.Wait()
	})
	return d
}

func dialTo(addr string) DialFunc {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

// pair returns the two ends of a link; dial nil is a direct connection.
func pair(t testing.TB, d *door, dial DialFunc, o LinkOptions) (agent, appliance *Link) {
	t.Helper()
	if dial == nil {
		dial = dialTo(d.ln.Addr().String())
	}
	agent, err := Dial(t.Context(), dial, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Abort(errors.New("test over")) })
	appliance, err = d.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return agent, appliance
}

func TestLinkCarriesMessagesBothWaysAndCloses(t *testing.T) {
	d := openDoor(t, LinkOptions{})
	agent, appliance := pair(t, d, nil, LinkOptions{})
	ctx := t.Context()
	task := holdfast.TaskID{ID: holdfast.NewID()}
	if err := agent.Send(ctx, Message{Type: TypeBegin, Body: Begin{task}}); err != nil {
		t.Fatal(err)
	}
	m, err := appliance.Recv(ctx)
	if err != nil || m.Body.(Begin).Task != task {
		t.Fatal(m, err)
	}
	if err := appliance.Send(ctx, Message{Type: TypeTracked}); err != nil {
		t.Fatal(err)
	}
	if m, err = agent.Recv(ctx); err != nil || m.Type != TypeTracked {
		t.Fatal(m, err)
	}
	if err := agent.Send(ctx, Message{Type: TypeDone}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := agent.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	if m, err = appliance.Recv(ctx); err != nil || m.Type != TypeDone {
		t.Fatal(m, err)
	}
	if _, err = appliance.Recv(ctx); err != io.EOF {
		t.Fatal(err)
	}
	if err := appliance.Close(ctx); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

func TestAbortTellsThePeerWhy(t *testing.T) {
	d := openDoor(t, LinkOptions{})
	agent, appliance := pair(t, d, nil, LinkOptions{})
	appliance.Abort(holdfast.Errorf(holdfast.Busy, "x", "too much to do").Advise("come back later"))
	_, err := agent.Recv(t.Context())
	if holdfast.KindOf(err) != holdfast.Busy || holdfast.HintOf(err) != "come back later" {
		t.Fatal(err)
	}
}

func TestAbortWithoutAReasonIsNoPanic(t *testing.T) {
	d := openDoor(t, LinkOptions{})
	agent, appliance := pair(t, d, nil, LinkOptions{})
	appliance.Abort(nil)
	if _, err := agent.Recv(t.Context()); holdfast.KindOf(err) != holdfast.Cancelled {
		t.Fatal(err)
	}
	if _, err := appliance.Recv(t.Context()); err == nil {
		t.Fatal("a link that was aborted goes on")
	}
}

func BenchmarkLinkPut(b *testing.B) {
	d := openDoor(b, LinkOptions{})
	agent, appliance := pair(b, d, nil, LinkOptions{})
	g := &holdfast.Group{Payload: make([]byte, 1<<20)}
	for range 16 {
		g.Chunks = append(g.Chunks, holdfast.Piece{Len: 1 << 16})
	}
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	b.ResetTimer()
	go func() {
		for range b.N {
			if err := agent.Send(b.Context(), Message{Type: TypePut, Body: g}); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	for range b.N {
		m, err := appliance.Recv(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		m.Release()
	}
}
