package ingest

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// Options is what a Server works with.
type Options struct {
	Catalog  *catalog.Catalog
	Desk     Desk
	Clock    clock.Clock       // nil: clock.System
	Listener holdfast.Listener // may be nil
	Workers  int               // that verify groups, for all sessions together; 0: one per processor
}

// farewellTime bounds how long the end of a session waits for the agent to hear of it.
const farewellTime = 10 * time.Second

// A Server serves the tasks of agents. It is safe for concurrent use.
type Server struct {
	o    Options
	jobs chan *job
	wg   sync.WaitGroup
}

// NewServer starts a server's workers; Close ends them.
func NewServer(o Options) *Server {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	s := &Server{o: o, jobs: make(chan *job)}
	for range o.Workers {
		s.wg.Go(s.verify)
	}
	return s
}

// Close ends the workers. Every ServeLink must have returned.
func (s *Server) Close() {
	close(s.jobs)
	s.wg.Wait()
}

// A job is a group to be verified.
type job struct {
	group  *holdfast.Group
	domain holdfast.Domain
	done   chan error // has room for the answer
}

// verify decodes groups and computes every digest again: what a pool gets is what its name says, whoever sent it.
func (s *Server) verify() {
	dec := chunk.NewDecoder()
	buf := make([]byte, holdfast.MaxGroupPlain)
	var domain holdfast.Domain
	hash := domain.Hasher()
	for j := range s.jobs {
		if j.domain != domain {
			domain, hash = j.domain, j.domain.Hasher()
		}
		_, err := dec.Open(hash, j.group, buf, nil)
		j.done <- err
	}
}

// ServeLink serves the one task of a link from the host whose certificate opened it, and ends the link. The error is why the task
// failed; the agent was told.
func (s *Server) ServeLink(ctx context.Context, link *wire.Link, host holdfast.HostID) error {
	err := s.serve(ctx, link, host)
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellTime)
	defer cancel()
	if err != nil && link.Err() == nil {
		// What matters is said by err; a link that cannot carry this any more ends with it all the same.
		_ = link.Send(bye, wire.Message{Type: wire.TypeFail, Body: wire.FailureOf(err)})
	}
	if e := link.Close(bye); e != nil {
		link.Abort(e)
	}
	s.report(host, err)
	return err
}

func (s *Server) serve(ctx context.Context, link *wire.Link, host holdfast.HostID) error {
	m, err := receive(ctx, link)
	if err != nil {
		return err
	}
	switch m.Type {
	case wire.TypeBegin:
		return s.backup(ctx, link, host, m.Body.(wire.Begin).Task)
	case wire.TypeOpenSet:
		return s.restore(ctx, link, host, m.Body.(wire.Begin).Task)
	}
	defer m.Release()
	return invalid("open session", "a %v message, but no task was begun", m.Type)
}

// receive returns the next message. The peer's Fail, and its closing the link, are errors.
func receive(ctx context.Context, link *wire.Link) (wire.Message, error) {
	m, err := link.Recv(ctx)
	switch {
	case errors.Is(err, io.EOF):
		return m, holdfast.Errorf(holdfast.Offline, "serve task", "the agent closed the link in the middle of the task")
	case err != nil:
		return m, err
	case m.Type == wire.TypeFail:
		e := m.Body.(wire.Failure).AsError()
		e.Op = "the agent reports"
		return m, e
	}
	return m, nil
}

// report makes an event of an agent that is not what it should be. Ordinary failures are the run's to tell.
func (s *Server) report(host holdfast.HostID, err error) {
	var l *lie
	if !errors.As(err, &l) {
		return
	}
	e := holdfast.Event{
		Time: s.o.Clock.Now().UTC(), Type: holdfast.EventRefused, Severity: holdfast.Warning,
		Text: "An agent was refused in the middle of a task: " + err.Error(), Fields: map[string]string{"host": host.String()},
	}
	if holdfast.KindOf(err) == holdfast.Corrupt {
		e.Type, e.Severity = holdfast.EventChunkCorrupt, holdfast.Alarm
		e.Text = "An agent sent bytes that are not what it said; nothing was stored: " + err.Error()
	}
	s.o.Listener.Emit(e)
}

// A lie is an error that an honest agent cannot cause.
type lie struct{ err *holdfast.Error }

func (l *lie) Error() string { return l.err.Error() }
func (l *lie) Unwrap() error { return l.err }

func invalid(op, format string, args ...any) error {
	return &lie{holdfast.Errorf(holdfast.Invalid, op, format, args...)}
}
