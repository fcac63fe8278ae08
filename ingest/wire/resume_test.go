package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire/netem"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

func proxyTo(t testing.TB, d *door, line netem.Line) *netem.Proxy {
	t.Helper()
	p, err := netem.Listen(d.ln.Addr().String(), line)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// numbered makes a group of n bytes that begins with a number.
func numbered(number uint32, n int) *holdfast.Group {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(number) ^ byte(i)
	}
	binary.LittleEndian.PutUint32(p, number)
	return &holdfast.Group{Chunks: []holdfast.Piece{{Len: uint32(n)}}, Payload: p}
}

// Goal: whatever byte a connection breaks at, in either direction, every message arrives once and in order, and what is sent
// again stays within the buffer.
// Method: a proxy cuts 100 connections after random numbers of bytes, some within the handshake, while numbered messages go both ways.
func TestLinkResumesAtAnyByte(t *testing.T) {
	const cuts, buffer, seed = 100, 1 << 20, 1
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	d := openDoor(t, LinkOptions{ReplayBytes: buffer})
	p := proxyTo(t, d, netem.Line{})
	var dials atomic.Int32
	dial := func(ctx context.Context) (net.Conn, error) {
		switch n := dials.Add(1); {
		case n == 1 || n > cuts:
			p.CutAfter(-1)
		case n%5 == 0:
			p.CutAfter(1 + rng.Int64N(300))
		default:
			p.CutAfter(1 + rng.Int64N(2<<20))
		}
		return p.Dial(ctx)
	}
	agent, appliance := pair(t, d, dial, LinkOptions{ReplayBytes: buffer})
	p.CutAfter(1 << 19)
	var wg sync.WaitGroup
	var sent uint32
	sizes := rand.New(rand.NewPCG(seed, 1))
	wg.Go(func() { // agent sends
		for dials.Load() <= cuts && sent < 20_000 {
			sent++
			if err := agent.Send(t.Context(), Message{Type: TypePut, Channel: uint16(sent), Body: numbered(sent, 100+sizes.IntN(150_000))}); err != nil {
				t.Error(err)
				return
			}
		}
		if err := agent.Send(t.Context(), Message{Type: TypeDone}); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { // agent hears the answers
		for n := uint32(1); ; n++ {
			m, err := agent.Recv(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if m.Type == TypeDone {
				return
			}
			if got := m.Body.(Have).Batch; got != n {
				t.Errorf("answer %d came as number %d", got, n)
				return
			}
			m.Release()
		}
	})
	var n uint32
	for {
		m, err := appliance.Recv(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m.Type == TypeDone {
			break
		}
		n++
		g := m.Body.(*holdfast.Group)
		if want := numbered(n, len(g.Payload)); string(want.Payload) != string(g.Payload) || m.Channel != uint16(n) {
			t.Fatalf("message %d is not as it was sent", n)
		}
		m.Release()
		if err := appliance.Send(t.Context(), Message{Type: TypeHave, Body: Have{n, []bool{true}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := appliance.Send(t.Context(), Message{Type: TypeDone}); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	s := agent.Stats()
	if n != sent || s.Breaks < cuts/2 {
		t.Errorf("%d of %d messages, %d breaks", n, sent, s.Breaks)
	}
	if s.Resent > buffer*s.Breaks {
		t.Errorf("%d bytes were sent again in %d breaks", s.Resent, s.Breaks)
	}
	t.Logf("%d messages, %+v, %d connections", n, s, dials.Load())
}

// Goal: latency alone does not throttle a stream that the buffer covers. The share is told, not asserted: other work on the machine lowers it.
func TestLongLineIsUsed(t *testing.T) {
	const rate, total = 40 << 20, 100 << 20
	d := openDoor(t, LinkOptions{})
	p := proxyTo(t, d, netem.Line{Delay: 75 * time.Millisecond, Rate: rate})
	agent, appliance := pair(t, d, p.Dial, LinkOptions{})
	g := numbered(1, 256<<10)
	start := clock.System.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		for range total / len(g.Payload) {
			if err := agent.Send(t.Context(), Message{Type: TypePut, Body: g}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range total / len(g.Payload) {
		m, err := appliance.Recv(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m.Release()
	}
	wg.Wait()
	took := clock.System.Now().Sub(start)
	share := float64(total) / took.Seconds() / rate
	t.Logf("%.0f %% of the line", share*100)
}

func TestSlowConsumerBoundsMemoryAtBothEnds(t *testing.T) {
	const buffer = 1 << 20
	d := openDoor(t, LinkOptions{})
	agent, appliance := pair(t, d, nil, LinkOptions{ReplayBytes: buffer})
	g := numbered(1, 200_000)
	const n = 300
	var wg sync.WaitGroup
	wg.Go(func() {
		for range n {
			if err := agent.Send(t.Context(), Message{Type: TypePut, Body: g}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range n {
		if u := agent.Stats().Unacked; u > buffer {
			t.Fatalf("%d bytes in the buffer", u)
		}
		appliance.mu.Lock()
		held := appliance.in.bytes
		appliance.mu.Unlock()
		if held > buffer {
			t.Fatalf("%d bytes received ahead", held)
		}
		m, err := appliance.Recv(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m.Release()
	}
	wg.Wait()
}

func TestSendGivesUpWithItsContext(t *testing.T) {
	d := openDoor(t, LinkOptions{})
	agent, _ := pair(t, d, nil, LinkOptions{ReplayBytes: 1000})
	if err := agent.Send(t.Context(), Message{Type: TypePut, Body: numbered(1, 900)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := agent.Send(ctx, Message{Type: TypePut, Body: numbered(1, 900)}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if agent.Err() != nil {
		t.Fatal("the link died of it")
	}
}

func TestHalfOpenConnectionIsNoticedAndReplaced(t *testing.T) {
	o := LinkOptions{PingEvery: 15 * time.Millisecond}
	d := openDoor(t, o)
	p := proxyTo(t, d, netem.Line{})
	broke := make(chan error, 10)
	oa := o
	oa.OnBreak = func(err error) {
		p.Freeze(false)
		broke <- err
	}
	agent, appliance := pair(t, d, p.Dial, oa)
	p.Freeze(true)
	if err := agent.Send(t.Context(), Message{Type: TypeTracked}); err != nil {
		t.Fatal(err)
	}
	if err := <-broke; !errors.Is(err, holdfast.Offline) {
		t.Fatal(err)
	}
	if m, err := appliance.Recv(t.Context()); err != nil || m.Type != TypeTracked {
		t.Fatal(m, err)
	}
}

func TestLinkWithoutConnectionDiesAfterTheWindow(t *testing.T) {
	o := LinkOptions{Window: 200 * time.Millisecond}
	d := openDoor(t, o)
	p := proxyTo(t, d, netem.Line{})
	agent, appliance := pair(t, d, p.Dial, o)
	p.Refuse(true)
	p.Cut()
	for _, l := range []*Link{agent, appliance} {
		if _, err := l.Recv(t.Context()); !errors.Is(err, holdfast.Offline) {
			t.Fatal(err)
		}
	}
}

// hand does a handshake by hand and returns the connection, what it reads from, and the answer.
func hand(t *testing.T, d *door, h hello) (net.Conn, *bufio.Reader, *frame) {
	t.Helper()
	conn, br := rawConn(t, d, control(TypeHello, h.append(nil)).b)
	f, _, err := readFrame(br, maxEarly)
	if err != nil {
		t.Fatal(err)
	}
	return conn, br, f
}

func rawConn(t *testing.T, d *door, first []byte) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", d.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write(first); err != nil {
		t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

// failureIn reads frames up to a Refuse and returns its error.
func failureIn(t *testing.T, br *bufio.Reader) error {
	t.Helper()
	for {
		f, h, err := readFrame(br, MaxFrame)
		if err != nil {
			return err
		}
		if h.typ == TypeRefuse {
			body, err := parseFailure(h.typ, f.payload())
			if err != nil {
				t.Fatal(err)
			}
			return body.(Failure).AsError()
		}
	}
}

func TestOnlyTheSamePeerWithTheTokenResumes(t *testing.T) {
	d := openDoor(t, LinkOptions{})
	conn, _, f := hand(t, d, hello{versions: Versions(), window: 1 << 20})
	w, err := parseWelcome(f.payload())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(control(TypePing, nil).b); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	good := hello{Versions(), w.link, w.token, 0, 1 << 20}
	refusals := func(name string, h hello) {
		t.Helper()
		_, br := rawConn(t, d, control(TypeHello, h.append(nil)).b)
		if err := failureIn(t, br); !errors.Is(err, holdfast.NotExist) && !errors.Is(err, holdfast.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := good
	bad.token[31] ^= 1
	refusals("another token", bad)
	bad = good
	bad.link[0] ^= 1
	refusals("another link", bad)
	bad = good
	bad.received = 5
	refusals("messages never sent", bad)
	bad = good
	bad.link = holdfast.ID{}
	refusals("token without link", bad)
	d.mu.Lock()
	owner := d.peer
	d.peer = holdfast.HostID{ID: holdfast.NewID()}
	d.mu.Unlock()
	refusals("another host", good)
	d.mu.Lock()
	d.peer = owner
	d.mu.Unlock()
	if _, _, f := hand(t, d, good); Type(f.b[0]) != TypeWelcome {
		t.Error("the owner was refused")
	}
}

func TestProtocolErrorsAreToldToBothSides(t *testing.T) {
	sealed := func(typ Type, seq uint32, payload []byte) []byte {
		f := newFrame(len(payload))
		copy(f.payload(), payload)
		f.measure()
		f.seal(header{typ: typ, seq: seq})
		return f.b
	}
	flipped := func(b []byte) []byte {
		b = append([]byte(nil), b...)
		b[len(b)-1] ^= 1
		return b
	}
	hi := hello{versions: Versions(), window: 1 << 20}
	future := hello{versions: []uint16{900, 899}}
	oversized := append(sealed(TypePut, 1, nil)[:4:4], 0xff, 0xff, 0xff, 0x7f, 1, 0, 0, 0, 0, 0, 0, 0)
	for name, c := range map[string]struct {
		early bool
		send  []byte
		kind  holdfast.Kind
		text  string
	}{
		"plaintext":            {true, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), holdfast.Unsupported, "unknown frame type"},
		"no common version":    {true, control(TypeHello, future.append(nil)).b, holdfast.Unsupported, "speaks 1, the other 900, 899"},
		"early large frame":    {true, append(sealed(TypeHello, 0, nil)[:4:4], 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0), holdfast.Invalid, "at most 4096"},
		"message before hello": {true, sealed(TypeDone, 1, nil), holdfast.Invalid, "instead of Hello"},
		"bad early checksum":   {true, flipped(control(TypeHello, hi.append(nil)).b), holdfast.Corrupt, "checksum"},
		"oversized frame":      {false, oversized, holdfast.Invalid, "at most"},
		"bad checksum":         {false, flipped(sealed(TypeBegin, 1, []byte("{}"))), holdfast.Corrupt, "checksum"},
		"unknown type":         {false, sealed(77, 1, nil), holdfast.Unsupported, "type 77"},
		"gap in numbering":     {false, sealed(TypeDone, 2, nil), holdfast.Invalid, "after frame 0"},
		"ack of nothing sent":  {false, sealed(TypeAck, 0, []byte{9, 0, 0, 0}), holdfast.Invalid, "ack of message 9"},
		"second hello":         {false, control(TypeHello, hi.append(nil)).b, holdfast.Invalid, "on an open link"},
		"cut short message": {false, func() []byte {
			b := sealed(TypeStart, 1, []byte("{}"))
			f := &frame{b: b}
			f.measure()
			f.seal(header{TypeStart, flagMore, 0, 2, 1})
			return b
		}(), holdfast.Invalid, "cut after"},
	} {
		t.Run(name, func(t *testing.T) {
			d := openDoor(t, LinkOptions{})
			var br *bufio.Reader
			var there *Link
			if c.early {
				_, br = rawConn(t, d, c.send)
			} else {
				var conn net.Conn
				conn, br, _ = hand(t, d, hi)
				if _, err := conn.Write(c.send); err != nil {
					t.Fatal(err)
				}
				var err error
				if there, err = d.Accept(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := failureIn(t, br); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("the peer was told: %v", err)
			}
			if there != nil {
				if _, err := there.Recv(t.Context()); !errors.Is(err, c.kind) {
					t.Errorf("the appliance saw: %v", err)
				}
			}
			if _, err := io.Copy(io.Discard, br); err != nil {
				t.Log("the connection ended with", err)
			}
		})
	}
}

func TestMessageThatDoesNotParseEndsTheLinkForBoth(t *testing.T) {
	d := openDoor(t, LinkOptions{})
	agent, appliance := pair(t, d, nil, LinkOptions{})
	f := newFrame(2)
	copy(f.payload(), "[]")
	f.measure()
	if err := agent.enqueue(&Message{Type: TypeBegin}, []*frame{f}, int64(len(f.b))); err != nil {
		t.Fatal(err)
	}
	if _, err := appliance.Recv(t.Context()); !errors.Is(err, holdfast.Invalid) {
		t.Fatal(err)
	}
	if _, err := agent.Recv(t.Context()); !errors.Is(err, holdfast.Invalid) {
		t.Fatal(err)
	}
}

func TestUnknownVersionIsRefusedAtTheDialler(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		_, err = choose([]uint16{7}, Versions())
		Refuse(conn, err)
	}()
	_, err = Dial(t.Context(), dialTo(ln.Addr().String()), LinkOptions{})
	if !errors.Is(err, holdfast.Unsupported) || !strings.Contains(err.Error(), "speaks 7, the other 1") {
		t.Fatal(err)
	}
}
