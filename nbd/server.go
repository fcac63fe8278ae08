package nbd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const (
	maxConns         = 64               // more are closed at once; with maxInflightBytes it bounds the server's memory
	negotiateTimeout = 30 * time.Second // a client that says nothing holds a connection no longer than this
	stopTimeout      = 5 * time.Second  // after which a client that does not read its replies is cut off
)

// A Server serves exports to any number of clients. Set its fields before Serve. The zero Server is ready to use.
type Server struct {
	// StartTLS, if set, upgrades a connection: every client must then ask for TLS (NBD_OPT_STARTTLS) before anything else.
	// It returns the connection to go on with, typically a *tls.Conn with client certificates required.
	StartTLS func(net.Conn) (net.Conn, error)
	// OnError, if set, hears of errors of backends and of connections that broke the protocol. It must not block.
	OnError func(error)

	exports []Export
	mu      sync.Mutex
	conns   map[*conn]bool // true: negotiated
	stop    bool
}

// Serve serves the exports on l until ctx ends; see Server.Serve.
func Serve(ctx context.Context, l net.Listener, exports ...Export) error {
	return new(Server).Serve(ctx, l, exports...)
}

// Serve serves the exports on l until ctx ends or l fails, and closes l. When ctx ends, requests that were already read are
// finished and answered, then the connections are closed; it returns nil when the last one is. A Server serves once.
func (s *Server) Serve(ctx context.Context, l net.Listener, exports ...Export) error {
	if err := checkExports(exports); err != nil {
		l.Close()
		return err
	}
	s.exports = exports
	s.conns = make(map[*conn]bool)
	var wg sync.WaitGroup
	stopped := make(chan struct{})
	unwatch := context.AfterFunc(ctx, func() {
		defer close(stopped)
		l.Close()
		s.drain()
	})
	err := s.accept(ctx, l, &wg)
	if unwatch() {
		l.Close()
		s.drain()
	} else {
		<-stopped
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Server) accept(ctx context.Context, l net.Listener, wg *sync.WaitGroup) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			return holdfast.Errorf(holdfast.Internal, "serve nbd", "%w", err)
		}
		c := &conn{srv: s, nc: nc, br: bufio.NewReaderSize(nc, 64<<10)}
		c.budget.freed.L = &c.budget.mu
		if !s.add(c) {
			nc.Close()
			continue
		}
		wg.Go(func() {
			defer s.remove(c)
			if err := c.serve(); err != nil && ctx.Err() == nil && !isGone(err) {
				s.report(err)
			}
		})
	}
}

// isGone reports whether err only says that the client went away.
func isGone(err error) bool {
	return errors.Is(err, errDone) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (s *Server) report(err error) {
	if s.OnError != nil {
		s.OnError(err)
	}
}

// add takes a connection in; false if there is no room or the server stops.
func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop || len(s.conns) >= maxConns {
		return false
	}
	s.conns[c] = false
	_ = c.nc.SetDeadline(clock.System.Now().Add(negotiateTimeout))
	return true
}

// negotiated lifts the time limit of the negotiation.
func (s *Server) negotiated(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = true
	if !s.stop {
		_ = c.nc.SetDeadline(time.Time{})
	}
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	c.nc.Close()
}

// drain makes every connection stop reading; what it has read it answers.
func (s *Server) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop = true
	now := clock.System.Now()
	for c := range s.conns {
		_ = c.nc.SetReadDeadline(now)
		_ = c.nc.SetWriteDeadline(now.Add(stopTimeout))
	}
}

// maxSocketPath is the longest path of a unix socket that every system takes.
const maxSocketPath = 103

// Listen listens at an address: "unix:PATH", or "tcp:HOST:PORT". A socket file that nobody listens at is replaced; the new one is
// for its owner only.
func Listen(address string) (net.Listener, error) {
	const op = "listen for nbd"
	network, addr, ok := strings.Cut(address, ":")
	switch {
	case !ok || (network != "unix" && network != "tcp"):
		return nil, holdfast.Errorf(holdfast.Invalid, op, "%q is neither unix:PATH nor tcp:HOST:PORT", address)
	case network == "tcp":
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, holdfast.Errorf(listenKind(err), op, "%w", err)
		}
		return l, nil
	case len(addr) > maxSocketPath:
		return nil, holdfast.Errorf(holdfast.Invalid, op, "the path of the socket has %d bytes; at most %d work everywhere", len(addr), maxSocketPath).
			Advise("choose a shorter path, for example in the temporary folder")
	}
	l, err := net.Listen("unix", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		if c, dialErr := net.Dial("unix", addr); dialErr == nil {
			c.Close()
		} else if fi, statErr := os.Lstat(addr); statErr == nil && fi.Mode().Type() == os.ModeSocket && os.Remove(addr) == nil {
			l, err = net.Listen("unix", addr)
		}
	}
	if err != nil {
		return nil, holdfast.Errorf(listenKind(err), op, "%w", err)
	}
	if err := os.Chmod(addr, 0o600); err != nil {
		l.Close()
		return nil, holdfast.Errorf(holdfast.Permission, op, "%w", err)
	}
	return l, nil
}

func listenKind(err error) holdfast.Kind {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return holdfast.Busy
	case errors.Is(err, os.ErrPermission):
		return holdfast.Permission
	case errors.Is(err, os.ErrNotExist):
		return holdfast.NotExist
	}
	return holdfast.Internal
}
