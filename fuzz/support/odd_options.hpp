#pragma once

// Options that make a resource refuse, or forget.

#include "support/checked.hpp"

#include <cstddef>

namespace fuzz {

/// What odd options of a resource with units are counted in.
struct odd_units {
    std::size_t quarantine = 1;
    std::size_t least_addresses = 0;  ///< bytes
    std::size_t addresses = 1;
};

/// Effects: sets a limit, or leaves little room, or most often neither; \p k gets to know.
template <class Options>
void set_odd_options(fuzz_input& in, const odd_units& units, Options& o, knowledge& k) {
    switch (in.byte() % 8) {
        case 1: o.limit_bytes = k.limit_bytes = 1000 + in.byte() * std::size_t{200}; break;
        case 2: o.limit_blocks = k.limit_blocks = 2 + in.byte(); break;
        case 3:
            k.tight = true;
            o.quarantine_bytes = in.byte() * units.quarantine;
            break;
        case 4:
            k.tight = true;
            o.retired_record_bytes = in.byte() * std::size_t{64};
            break;
        case 5:
            k.tight = k.may_run_out = true;
            o.address_space_bytes = units.least_addresses + in.byte() * units.addresses;
            break;
        default: break;
    }
}

}  // namespace fuzz
