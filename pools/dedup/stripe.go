package dedup

import (
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// ParseStripe reads "4+2" as data and parity shards; "" is 0 and 0. The error is Invalid. What can be striped is for pools/parity to say.
func ParseStripe(s string) (data, parity int, err error) {
	if s == "" {
		return 0, 0, nil
	}
	left, right, _ := strings.Cut(s, "+")
	data, err1 := strconv.Atoi(left)
	parity, err2 := strconv.Atoi(right)
	if err1 != nil || err2 != nil || data < 1 || parity < 1 || data > 64 || parity > 64 {
		return 0, 0, holdfast.Errorf(holdfast.Invalid, "read pool config", "stripe %q", s).Advise("write data and parity shards, as 4+2")
	}
	return data, parity, nil
}
