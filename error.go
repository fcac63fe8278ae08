package holdfast

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// A Kind is the class of an error: what a caller can do about it. Numbers are append-only, they travel over the wire.
// A Kind is itself an error, so that errors.Is(err, holdfast.Offline) works.
type Kind uint8

const (
	Internal    Kind = 0  // a broken invariant of our own, or an error nobody classified
	NotExist    Kind = 1  // the thing named is not there
	Exist       Kind = 2  // the thing to be made is already there
	Invalid     Kind = 3  // the request or the input is wrong and will stay wrong
	Permission  Kind = 4  // the principal may not do this
	Corrupt     Kind = 5  // stored or received bytes are not what they were
	Offline     Kind = 6  // a host, medium or pool is not reachable now
	NoSpace     Kind = 7  // the target is full
	Immutable   Kind = 8  // a hold or a protection forbids it
	Busy        Kind = 9  // something else has it now
	Transient   Kind = 10 // worth trying again
	Unsupported Kind = 11 // this build, host or format cannot do it
	Cancelled   Kind = 12 // somebody asked for the work to stop
)

var kindNames = [...]string{"internal error", "not found", "already exists", "invalid", "permission denied", "corrupt", "offline",
	"no space", "immutable", "busy", "transient failure", "unsupported", "cancelled"}

// String returns the kind's words, as shown to people.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Code returns the kind as one word for programs: "not-found", "permission-denied".
func (k Kind) Code() string { return strings.ReplaceAll(k.String(), " ", "-") }

// KindOfCode returns the kind that a code stands for; Internal for an unknown one.
func KindOfCode(code string) Kind {
	for k := range Kind(len(kindNames)) {
		if k.Code() == code {
			return k
		}
	}
	return Internal
}

// Error implements error.
func (k Kind) Error() string { return k.String() }

// An Error is an error with its class and what to do next. The floor that first knows the Kind sets it; floors above add
// their operation by wrapping with fmt.Errorf("...: %w") or nothing.
type Error struct {
	Op   string // what was being done, as a short verb phrase; may be empty
	Kind Kind
	Hint string // what the admin can do next, a sentence; may be empty
	Err  error  // the message, possibly wrapping a cause
}

// Errorf makes an Error of a kind; format may wrap a cause with %w.
func Errorf(k Kind, op, format string, args ...any) *Error {
	return &Error{Op: op, Kind: k, Err: fmt.Errorf(format, args...)}
}

// Advise sets what to do next and returns e.
func (e *Error) Advise(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Error returns "op: message"; the kind's words stand in where there is no message.
func (e *Error) Error() string {
	msg := e.Kind.String()
	if e.Err != nil {
		msg = e.Err.Error()
	}
	if e.Op == "" {
		return msg
	}
	return e.Op + ": " + msg
}

// Unwrap lets errors.Is see both the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// KindOf returns the kind of the outermost classified error in err's chain: Cancelled for a cancelled context, Transient for
// a passed deadline, Internal where nothing is classified.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var k Kind
	switch {
	case errors.As(err, &k):
		return k
	case errors.Is(err, context.Canceled):
		return Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		return Transient
	}
	return Internal
}

// HintOf returns the first advice in err's chain, or "".
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}
