// Package cli is what the house's programs share on their command lines: one table of exit codes, errors as people and as
// programs read them, sizes, and names made safe for a terminal. It starts nothing and keeps nothing.
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
)

// Exit codes. This is the one table; scripts treat an unknown code as a failure.
const (
	OK          = 0
	Failed      = 1
	Usage       = 2
	Partial     = 3
	NotFound    = 4
	Denied      = 5
	Busy        = 6
	Damaged     = 7
	Unreachable = 8
	Protected   = 9
	Interrupted = 130
)

// ExitHelp explains the codes at the end of a program's help.
const ExitHelp = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part, 4 not found, 5 denied, 6 busy, 7 damage found,\n" +
	"8 unreachable, 9 refused by a protection, 130 interrupted."

var codes = map[holdfast.Kind]int{
	holdfast.NotExist:   NotFound,
	holdfast.Invalid:    Usage,
	holdfast.Permission: Denied,
	holdfast.Busy:       Busy,
	holdfast.Corrupt:    Damaged,
	holdfast.Offline:    Unreachable,
	holdfast.Transient:  Unreachable,
	holdfast.Immutable:  Protected,
	holdfast.Cancelled:  Interrupted,
}

// An ExitError fixes the exit code of an error.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap returns the error whose code is fixed.
func (e *ExitError) Unwrap() error { return e.Err }

// CodeOf returns the exit code of an error: what an ExitError in its chain says, else its kind's.
func CodeOf(err error) int {
	var fixed *ExitError
	if err == nil {
		return OK
	}
	if errors.As(err, &fixed) {
		return fixed.Code
	}
	if code, ok := codes[holdfast.KindOf(err)]; ok {
		return code
	}
	return Failed
}

// Report prints an error, with what to do next, and returns the exit code. nil prints nothing.
func Report(w io.Writer, program string, asJSON bool, err error) int {
	if err == nil {
		return OK
	}
	// cobra does not type these.
	if s := err.Error(); strings.HasPrefix(s, "unknown command") {
		err = holdfast.Errorf(holdfast.Invalid, "", "%w", err).Advise("'%s --help' lists the commands", program)
	} else if strings.HasPrefix(s, "required flag") {
		err = holdfast.Errorf(holdfast.Invalid, "", "%w", err).Advise("'%s COMMAND --help' shows how to use it", program)
	}
	hint := holdfast.HintOf(err)
	if asJSON {
		type failure struct {
			Code    string `json:"code"`
			Message string `json:"message"`
			Hint    string `json:"hint,omitempty"`
		}
		b, e := json.Marshal(map[string]failure{"error": {holdfast.KindOf(err).Code(), err.Error(), hint}})
		if e == nil {
			fmt.Fprintf(w, "%s\n", b)
		}
		return CodeOf(err)
	}
	fmt.Fprintf(w, "error: %s\n", err)
	if hint != "" {
		fmt.Fprintf(w, "  %s\n", hint)
	}
	return CodeOf(err)
}

// UsageError makes an error of cobra's a usage error that says where to read on.
func UsageError(c *cobra.Command, err error) error {
	var known *holdfast.Error
	if errors.As(err, &known) {
		return err
	}
	return holdfast.Errorf(holdfast.Invalid, "", "%w", err).Advise("'%s --help' shows how to use it", c.CommandPath())
}

// WrapArgs makes a wrong number of arguments a usage error, in every command below c.
func WrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return UsageError(c, err)
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		WrapArgs(sub)
	}
}

// Group makes a command that only holds others.
func Group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(subs...)
	return c
}

// Clean keeps names that came from elsewhere from playing with the terminal.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}

// Size shows bytes in IEC units.
func Size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 && n > -1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n), -1
	for ; v >= 1024 || v <= -1024; u++ {
		v /= 1024
	}
	if v < 10 && v > -10 {
		return fmt.Sprintf("%.2f %ciB", v, units[u])
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}

// ParseSize reads a number of bytes with an optional unit: K, M, G or T, each 1024 of the one before, with or without "iB" or "B".
func ParseSize(s string) (int64, error) {
	num := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(strings.TrimSpace(s)), "B"), "I")
	shift := 0
	if num != "" {
		if i := strings.IndexByte("KMGT", num[len(num)-1]); i >= 0 {
			shift, num = 10*(i+1), num[:len(num)-1]
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, holdfast.Errorf(holdfast.Invalid, "", "%q is no size", s).Advise("for example 80M or 2G")
	}
	return n << shift, nil
}

// Version is the module's, as the build recorded it.
func Version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "development"
}
