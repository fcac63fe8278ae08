package appliance

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/auth"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

const (
	handshakeTime = 10 * time.Second // for a stranger to show who it is
	farewellTime  = 2 * time.Second  // for a stranger to hear why it is turned away
	maxStrangers  = 256              // connections in their handshake at once; more wait in the kernel
	maxHeader     = 64 << 10         // bytes of a request's header
	tlsRecord     = 0x16             // the first byte of every TLS connection
)

// serveSocket serves the API to whoever can open the unix socket: its mode is what decides.
func (d *Daemon) serveSocket() {
	local := auth.Principal{Role: auth.Admin, Name: "local administrator"}
	srv := &http.Server{
		Handler:           d.api.Local(),
		ReadHeaderTimeout: handshakeTime,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return d.ctx },
		ConnContext:       func(ctx context.Context, _ net.Conn) context.Context { return auth.With(ctx, local) },
		ErrorLog:          slog.NewLogLogger(d.c.Log.Handler(), slog.LevelDebug),
	}
	d.wg.Go(func() { d.ended("socket", srv.Serve(d.socket)) })
	d.undo = append(d.undo, func() error { return d.shutdown(srv) })
}

// shutdown lets requests under way finish, for a moment.
func (d *Daemon) shutdown(srv *http.Server) error {
	d.cancel(errShutdown)
	ctx, cancel := context.WithTimeout(context.Background(), stopWait)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		return closed(srv.Close)()
	}
	return nil
}

func (d *Daemon) ended(what string, err error) {
	if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		d.c.Log.Error("a door closed by itself", "door", what, "error", err)
	}
}

// servePort serves both protocols of agents on the port.
func (d *Daemon) servePort() {
	var only http.Protocols
	only.SetHTTP2(true)
	control := newHandover(d.port.Addr())
	srv := &http.Server{
		Handler:           d.turnedAway(d.api.Remote()),
		Protocols:         &only,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: 3 * wire.HeartbeatEvery, PingTimeout: 3 * wire.HeartbeatEvery},
		ReadHeaderTimeout: handshakeTime,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return d.ctx },
		ConnContext:       d.whoSpeaks,
		ErrorLog:          slog.NewLogLogger(d.c.Log.Handler(), slog.LevelDebug),
	}
	config := d.auth.ServerConfig()
	d.wg.Go(func() { d.ended("control", srv.Serve(control)) })
	d.undo = append(d.undo, func() error { return d.shutdown(srv) })
	d.wg.Go(func() {
		turn := make(chan struct{}, maxStrangers)
		for {
			conn, err := d.port.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of file descriptors, or a peer that was gone again: wait a little
				late, stop := d.c.Clock.After(100 * time.Millisecond)
				select {
				case <-late:
				case <-d.ctx.Done():
				}
				stop()
				continue
			}
			turn <- struct{}{}
			d.wg.Go(func() { d.welcome(conn, config, control, turn) })
		}
	})
	d.undo = append(d.undo, closed(d.port.Close))
}

// welcome finds out who has come and hands the connection on. Until then the connection has a deadline and a turn of few.
func (d *Daemon) welcome(conn net.Conn, config *tls.Config, control *handover, turn chan struct{}) {
	inTurn := true
	leave := func() {
		if inTurn {
			inTurn = false
			<-turn
		}
	}
	defer leave()
	stop := context.AfterFunc(d.ctx, func() { _ = conn.Close() }) // the peer will see
	defer stop()
	_ = conn.SetDeadline(d.c.Clock.Now().Add(handshakeTime)) // fails only on a closed connection, as will what follows
	peeked := &peekConn{Conn: conn, r: bufio.NewReader(conn)}
	first, err := peeked.r.Peek(1)
	if err != nil {
		_ = conn.Close() // nothing was said
		return
	}
	if first[0] != tlsRecord {
		d.plaintext(conn, first[0])
		return
	}
	tc := tls.Server(peeked, config)
	if err := tc.HandshakeContext(d.ctx); err != nil {
		if d.ctx.Err() == nil && !errors.Is(err, io.EOF) {
			d.refused(conn.RemoteAddr(), fmt.Errorf("TLS handshake: %w", err))
		}
		d.farewell(conn) // the alert is out
		return
	}
	_ = conn.SetDeadline(time.Time{})
	cs := tc.ConnectionState()
	if cs.NegotiatedProtocol == wire.ALPNControl {
		leave()
		control.give(d.ctx, tc)
		return
	}
	p, known, err := d.peer(cs)
	switch {
	case cs.NegotiatedProtocol != wire.ALPNData:
		err = holdfast.Errorf(holdfast.Invalid, "", "the peer names no protocol").Advise("this port speaks HTTP/2 and Holdfast's data protocol")
	case err == nil && !known:
		err = holdfast.Errorf(holdfast.Permission, "", "data needs a certificate of this appliance").Advise("enrol the agent first")
	}
	leave()
	if err != nil {
		d.refused(conn.RemoteAddr(), err)
		wire.Refuse(tc, err)
		return
	}
	d.networks.came(p.Host, api.DataPath{Time: d.c.Clock.Now().UTC(), From: hostOf(conn.RemoteAddr()), To: hostOf(conn.LocalAddr())})
	if err := d.links.Serve(d.ctx, tc, p.Host); err != nil && d.ctx.Err() == nil {
		d.refused(conn.RemoteAddr(), err)
	}
}

// plaintext tells a peer that speaks in the clear what to do, in one line, and nothing else.
func (d *Daemon) plaintext(conn net.Conn, first byte) {
	const line = "This port speaks TLS 1.3 only; use https:// or holdfast-agent.\n"
	answer := line
	if first >= 'A' && first <= 'Z' { // a method: it will read an answer of HTTP
		answer = fmt.Sprintf("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(line), line)
	}
	d.refused(conn.RemoteAddr(), errPlaintext)
	if _, err := io.WriteString(conn, answer); err != nil {
		_ = conn.Close() // it does not listen
		return
	}
	d.farewell(conn)
}

// farewell closes a connection on which the last word was said. What the peer still sends is read for a moment: the reset that follows a
// close with unread bytes would overtake the last word.
func (d *Daemon) farewell(conn net.Conn) {
	_ = conn.SetDeadline(d.c.Clock.Now().Add(farewellTime)) // all errors here mean that the peer has gone
	if tcp, ok := conn.(*net.TCPConn); ok && tcp.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, conn, maxHeader)
	}
	_ = conn.Close()
}

var errPlaintext error = holdfast.Errorf(holdfast.Permission, "", "it spoke in the clear, without TLS")

// peer returns who a handshake showed. On top of the certificate's own truth, it must be the newest one of its host.
func (d *Daemon) peer(cs tls.ConnectionState) (auth.Principal, bool, error) {
	p, known, err := d.auth.Peer(cs)
	if err != nil || !known {
		return p, known, err
	}
	err = d.cat.View(func(tx *catalog.Tx) error {
		h, err := tx.Host(p.Host)
		if errors.Is(err, holdfast.NotExist) {
			return nil // the catalog was lost: the certificate says who it is
		}
		if err == nil && h.CertSerial != "" && h.CertSerial != p.Serial {
			return holdfast.Errorf(holdfast.Permission, "check certificate", "host %q was enrolled anew since this certificate was made", h.Name).
				Advise("use the agent that was enrolled last, or enrol this one again")
		}
		return err
	})
	return p, err == nil, err
}

// refusalKey is the context key of why a connection's certificate is not good enough.
type refusalKey struct{}

// whoSpeaks puts the principal of a control connection into the context of its requests.
func (d *Daemon) whoSpeaks(ctx context.Context, conn net.Conn) context.Context {
	tc, ok := conn.(*tls.Conn)
	if !ok {
		return ctx
	}
	p, known, err := d.peer(tc.ConnectionState())
	switch {
	case err != nil:
		return context.WithValue(ctx, refusalKey{}, err)
	case known:
		return auth.With(ctx, p)
	}
	return ctx
}

// turnedAway answers requests of connections whose certificate is not good enough with the reason.
func (d *Daemon) turnedAway(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err, ok := r.Context().Value(refusalKey{}).(error); ok && r.URL.Path != wire.PathEnroll {
			d.refusedRequest(r, err)
			api.WriteError(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (d *Daemon) refusedRequest(r *http.Request, err error) {
	d.refusedAt(r.RemoteAddr, fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, err))
}

func (d *Daemon) refused(from net.Addr, err error) { d.refusedAt(from.String(), err) }

// hostOf returns an address without its port.
func hostOf(a net.Addr) string {
	if host, _, err := net.SplitHostPort(a.String()); err == nil {
		return host
	}
	return a.String()
}

// refusedAt records that somebody was turned away.
func (d *Daemon) refusedAt(from string, err error) {
	if host, _, e := net.SplitHostPort(from); e == nil {
		from = host
	}
	d.events.Emit(holdfast.Event{Type: holdfast.EventRefused, Severity: holdfast.Warning, Text: "refused " + from + ": " + err.Error(),
		Fields: map[string]string{"from": from}})
}

// A peekConn is a connection whose first bytes were looked at.
type peekConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *peekConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite lets a refusal be read before the connection goes.
func (c *peekConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// A handover is a listener whose connections come from another one.
type handover struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newHandover(addr net.Addr) *handover {
	return &handover{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handover) give(ctx context.Context, c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		_ = c.Close()
	case <-ctx.Done():
		_ = c.Close()
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handover) Addr() net.Addr { return h.addr }
