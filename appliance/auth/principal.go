package auth

import (
	"context"

	"github.com/holdfast-backup/holdfast"
)

// Role is what a principal may do. There are two so far; people's roles come with users.
type Role string

const (
	Admin Role = "administrator" // everything; whoever can open the daemon's unix socket
	Agent Role = "agent"         // the agent's own verbs, for its own host
)

// A Principal is who speaks, established at one of the two doors and nowhere else.
type Principal struct {
	Role   Role
	Host   holdfast.HostID // of an Agent
	Serial string          // of an Agent's certificate, hexadecimal
	Name   string          // for people: "local administrator", or the host's name at enrolment
}

type principalKey struct{}

// With returns a context that carries the principal. Only doors call it.
func With(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// From returns the principal of a request, and false where nobody has shown who they are.
func From(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(Principal)
	return p, ok
}

// Require returns the principal if it has the role. Otherwise the error is of kind Permission; a false second result
// means that nobody has shown who they are at all.
func Require(ctx context.Context, role Role) (Principal, bool, error) {
	p, ok := From(ctx)
	switch {
	case !ok:
		return p, false, holdfast.Errorf(holdfast.Permission, "", "this needs a certificate of this appliance").
			Advise("enrol the host: run 'holdfast host enroll NAME' on the appliance and 'holdfast-agent enroll' on the host")
	case p.Role != role:
		return p, true, holdfast.Errorf(holdfast.Permission, "", "the role %s is needed; %s has the role %s", role, p.Name, p.Role)
	}
	return p, true, nil
}
