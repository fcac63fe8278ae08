package agent

import (
	"context"
	"errors"
	"io"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// An exchange is the conversation of one task over its link.
type exchange struct {
	link    *wire.Link
	cancel  context.CancelCauseFunc // of the task: called with what went wrong on the link
	answers chan wire.Message       // that are not about a disk
	stop    func()                  // ends the receiver
}

// open asks for the task's work and waits for what the appliance says to it; answer points to the body's type.
func (x *exchange) open(ctx context.Context, ask wire.Type, id holdfast.TaskID, want wire.Type, answer any) error {
	if err := x.link.Send(ctx, wire.Message{Type: ask, Body: wire.Begin{Task: id}}); err != nil {
		return err
	}
	m, err := x.next(ctx)
	if err != nil {
		return err
	}
	if m.Type != want {
		return unexpected(m)
	}
	switch to := answer.(type) {
	case *wire.Began:
		*to = m.Body.(wire.Began)
	case *wire.SetOpened:
		*to = m.Body.(wire.SetOpened)
	}
	return nil
}

// next returns the next message; the appliance's failure and the end of the link are errors.
func (x *exchange) next(ctx context.Context) (wire.Message, error) {
	m, err := x.link.Recv(ctx)
	switch {
	case errors.Is(err, io.EOF):
		return m, holdfast.Errorf(holdfast.Offline, "talk to the appliance", "it closed the link in the middle of the task")
	case err != nil:
		return m, err
	case m.Type == wire.TypeFail:
		return m, m.Body.(wire.Failure).AsError()
	}
	return m, nil
}

func unexpected(m wire.Message) error {
	return holdfast.Errorf(holdfast.Invalid, "talk to the appliance", "a %v message was not expected", m.Type)
}

// receive starts the receiver: messages that end a phase go to wait, all others to handle, which owns them and decides how long
// the link waits. What goes wrong ends the task. stop ends the receiver and waits for it.
func (x *exchange) receive(ctx context.Context, handle func(context.Context, wire.Message) error) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	x.answers = make(chan wire.Message, 4)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			m, err := x.next(ctx)
			if err == nil {
				switch m.Type {
				case wire.TypeCommitted, wire.TypeTracked:
					err = pass(ctx, x.answers, m)
				default:
					err = handle(ctx, m)
				}
			}
			if err != nil {
				if ctx.Err() == nil {
					x.cancel(err)
				}
				return
			}
		}
	}()
	return func() {
		cancel()
		<-over
	}
}

// wait returns the next answer, which must be of the type.
func (x *exchange) wait(ctx context.Context, want wire.Type) (wire.Message, error) {
	m, _, err := take(ctx, x.answers)
	if err != nil {
		select {
		case m = <-x.answers: // it came before what ended the task
			err = nil
		default:
		}
	}
	if err == nil && m.Type != want {
		err = unexpected(m)
	}
	return m, err
}

// end closes the link of a task that went well, and tells the appliance why one did not. It returns the task's error.
func (x *exchange) end(ctx context.Context, err error) error {
	if err != nil {
		x.link.Abort(err)
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellTime)
	defer cancel()
	if e := x.link.Close(ctx); e != nil {
		x.link.Abort(e) // everything that matters was answered before
	}
	return nil
}
