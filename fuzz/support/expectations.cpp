#include "support/expectations.hpp"

#include <algorithm>
#include <sstream>

namespace fuzz {

namespace {

std::string name(error_kind kind) {
    return std::string(pmr_debug::to_string(kind));
}

template <class T>
std::string differs(const char* what, const T& expected, const T& found) {
    std::ostringstream out;
    out << what << " is " << found << ", not " << expected;
    return out.str();
}

}  // namespace

pmr_debug::action report_sink::handle(const report& r) noexcept {
    if (count_ < room) {
        kept_[count_] = r;
        // What is a view is gone after this call: only sums are kept.
        std::size_t blocks = 0;
        std::size_t bytes = 0;
        for (const pmr_debug::leak_group& g : r.leaks) {
            blocks += g.blocks;
            bytes += g.bytes;
        }
        if (!r.leaks.empty() && (blocks > r.leaked_blocks || bytes > r.leaked_bytes)) {
            kept_[count_].leaked_blocks = SIZE_MAX;  // groups that hold more than the sum: found as a wrong number
        }
        kept_[count_].leaks = {};
        kept_[count_].hint = {};
    }
    ++count_;
    return pmr_debug::action::carry_on;
}

std::string mismatch(const expectation& e, const report& r) {
    if (std::find(e.kinds.begin(), e.kinds.end(), r.kind) == e.kinds.end()) {
        return differs("the kind", name(e.kinds.front()), name(r.kind));
    }
    if (e.resource != nullptr && r.resource.address != e.resource) {
        return differs("the resource", e.resource, r.resource.address);
    }
    if (e.compare_pointer && r.pointer != e.pointer) {
        return differs("the pointer", e.pointer, r.pointer);
    }
    if (e.compare_given && (!r.has_given || r.given_size != e.given_bytes || r.given_alignment != e.given_alignment)) {
        return "given is (" + std::to_string(r.given_size) + ", " + std::to_string(r.given_alignment) + "), not (" +
               std::to_string(e.given_bytes) + ", " + std::to_string(e.given_alignment) + ")";
    }
    if (e.owner != nullptr && r.owner.address != e.owner) {
        return differs("the owner", e.owner, r.owner.address);
    }
    if (e.block.has_value() && r.kind == e.kinds.front()) {
        const known_block& b = *e.block;
        if (r.block.address != b.p) {
            return differs("the block's address", b.p, r.block.address);
        }
        if (r.block.size != b.bytes || r.block.alignment != b.alignment) {
            return "the block is (" + std::to_string(r.block.size) + ", " + std::to_string(r.block.alignment) +
                   "), not (" + std::to_string(b.bytes) + ", " + std::to_string(b.alignment) + ")";
        }
        if (b.serial != 0 && r.block.serial != b.serial) {
            return differs("the serial number", b.serial, r.block.serial);
        }
        if (b.state.has_value() && r.block.state != *b.state) {
            return differs("the block's state", static_cast<int>(*b.state), static_cast<int>(r.block.state));
        }
        if (b.alloc_thread != 0 && r.block.alloc_thread != b.alloc_thread) {
            return differs("the allocating thread", b.alloc_thread, r.block.alloc_thread);
        }
        if (b.free_thread != 0 && r.block.free_thread != b.free_thread) {
            return differs("the freeing thread", b.free_thread, r.block.free_thread);
        }
    }
    if (e.damage.has_value()) {
        const known_damage& d = *e.damage;
        if (r.first_bad != d.first) {
            return differs("the first damaged byte", d.first, r.first_bad);
        }
        if (r.bad_bytes != d.bytes) {
            return differs("the number of damaged bytes", d.bytes, r.bad_bytes);
        }
        if (r.bad_value != d.now || r.expected_value != d.expected) {
            return "values are " + std::to_string(r.bad_value) + " instead of " + std::to_string(r.expected_value) +
                   ", not " + std::to_string(d.now) + " instead of " + std::to_string(d.expected);
        }
    }
    if (e.compare_limit && (r.limit != e.limit || r.in_use != e.in_use)) {
        return "limit and use are (" + std::to_string(r.limit) + ", " + std::to_string(r.in_use) + "), not (" +
               std::to_string(e.limit) + ", " + std::to_string(e.in_use) + ")";
    }
    if (e.compare_leaks && (r.leaked_blocks != e.leaked_blocks || r.leaked_bytes != e.leaked_bytes)) {
        return "leaked are " + std::to_string(r.leaked_blocks) + " blocks of " + std::to_string(r.leaked_bytes) +
               " bytes, not " + std::to_string(e.leaked_blocks) + " of " + std::to_string(e.leaked_bytes);
    }
    if (e.other_thread != 0 && r.other_thread != e.other_thread) {
        return differs("the bound thread", e.other_thread, r.other_thread);
    }
    if (r.here == pmr_debug::trace_id::none) {
        return "there is no trace of where it was noticed";
    }
    return {};
}

std::string words(const report& r) {
    std::ostringstream out;
    out << name(r.kind) << " of " << r.resource.type << " at " << r.resource.address << ", pointer " << r.pointer;
    if (r.has_given) {
        out << ", given (" << r.given_size << ", " << r.given_alignment << ")";
    }
    if (r.block.address != nullptr) {
        out << ", block " << r.block.address << " (" << r.block.size << ", " << r.block.alignment << ") serial "
            << r.block.serial << " state " << static_cast<int>(r.block.state) << (r.nearest_only ? " nearest" : "");
    }
    if (r.first_bad != nullptr) {
        out << ", first bad " << r.first_bad << ", bad bytes " << r.bad_bytes;
    }
    if (r.leaked_blocks != 0) {
        out << ", leaked " << r.leaked_blocks << " blocks of " << r.leaked_bytes << " bytes";
    }
    if (r.limit != 0) {
        out << ", limit " << r.limit << ", in use " << r.in_use;
    }
    return out.str();
}

std::string words(const expectation& e) {
    std::ostringstream out;
    for (std::size_t i = 0; i < e.kinds.size(); ++i) {
        out << (i != 0 ? " or " : "") << name(e.kinds[i]);
    }
    if (e.compare_pointer) {
        out << ", pointer " << e.pointer;
    }
    if (e.block.has_value()) {
        out << ", block " << e.block->p << " (" << e.block->bytes << ", " << e.block->alignment << ")";
    }
    return out.str();
}

}  // namespace fuzz
