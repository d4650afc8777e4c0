#include "resources/block_reports.hpp"

#include "metadata/remains.hpp"
#include "os/other_tools.hpp"
#include "report/copies.hpp"
#include "report/wording.hpp"
#include "resources/leak_listing.hpp"

#include <cstring>

namespace pmr_debug::detail {

namespace {

// A block further away than this says nothing about a stray pointer.
constexpr std::size_t near_bytes = std::size_t{1} << 20;

void add_owner(report& r, const resource_ref& owner, const metadata::owned_block& theirs) noexcept {
    r.kind = error_kind::wrong_resource;
    r.owner = owner;
    r.block = theirs.block;
    r.allocated = theirs.allocated;
}

void add_block(report& r, const metadata::block_entry& known) noexcept {
    r.block = metadata::describe(known);
    r.allocated = known.allocated;
    r.freed = known.freed;
}

}  // namespace

report report_of(const metadata::resource_record* self, error_kind kind) noexcept {
    report r;
    r.kind = kind;
    r.resource = metadata::describe(self);
    return r;
}

report call_report(const metadata::resource_record* self, error_kind kind, const void* p, std::size_t bytes,
                   std::size_t alignment) noexcept {
    report r = report_of(self, kind);
    r.pointer = p;
    r.has_given = true;
    r.given_size = bytes;
    r.given_alignment = alignment;
    return r;
}

bool add_former_owner(report& r, const void* nearest) noexcept {
    metadata::owned_block was;
    const resource_ref owner = metadata::find_former_owner(r.pointer, nearest, &was);
    if (owner.id == 0) {
        return false;
    }
    r.owner = owner;
    if (was.block.address != nullptr) {
        r.block = was.block;
        r.allocated = was.allocated;
        r.hint =
            "a block was there when its resource was destroyed: it is that one, which its owner still holds, unless "
            "the memory was handed out to somebody else since";
        return true;
    }
    r.hint =
        "it lies in memory that a resource had which is destroyed: a block of that one, unless the memory is "
        "somebody else's since";
    return true;
}

void add_covering(report& r, const resource_ref& owner, const metadata::owned_block& theirs) noexcept {
    r.covering = theirs.block;
    r.other = theirs.allocated;
    r.owner = owner;
    r.hint =
        "another block, with its guards, covers the damaged byte, so it was right to write there: the upstream handed "
        "out memory that overlaps";
}

void look_for_covering(report& r, const metadata::resource_record* self) noexcept {
    metadata::owned_block theirs;
    const bool known = r.first_bad != nullptr && r.block.address != nullptr;
    const auto block = reinterpret_cast<std::uintptr_t>(r.block.address);
    const metadata::own_memory mine{block, r.block.size, block, r.block.size};
    if (const resource_ref owner = known ? metadata::find_covering(r.first_bad, mine, self, &theirs) : resource_ref{};
        owner.id != 0) {
        add_covering(r, owner, theirs);
    }
}

PMR_DEBUG_UNSEEN_BY_ASAN covering_block covering_damage(std::uintptr_t from, std::uintptr_t to, unsigned char expected,
                                                        bool or_zero, const metadata::own_memory& mine,
                                                        const metadata::resource_record* self) noexcept {
    // Who asks may hold a lock: so many bytes, and not each. A block is aligned to 8 at least, or lies next to one.
    constexpr int most_asked = 1 << 11;
    constexpr std::uintptr_t step = 8;
    covering_block found;
    int asked = 0;
    for (std::uintptr_t at = from; at < to && asked < most_asked && found.owner.id == 0;) {
        const unsigned char value = *reinterpret_cast<const unsigned char*>(at);
        if (value == expected || (or_zero && value == 0)) {
            ++at;
            continue;
        }
        found.owner = metadata::find_covering(reinterpret_cast<const void*>(at), mine, self, &found.block);
        at = (at | (step - 1)) + 1;
        ++asked;
    }
    return found;
}

resource_ref other_owner(const void* p, std::size_t bytes, std::size_t alignment, const metadata::resource_record* self,
                         metadata::owned_block& theirs) noexcept {
    resource_ref owner = metadata::find_owner(p, self, metadata::below::stop, &theirs);
    if (owner.id == 0) {
        owner = metadata::find_owner(p, self, metadata::below::ask, &theirs);
        const bool as_given = owner.alive && theirs.block.size == bytes && theirs.block.alignment == alignment;
        owner = as_given ? owner : resource_ref{};
    }
    return owner;
}

void block_reporter::request(error_kind kind, const void* p, std::size_t bytes, std::size_t alignment) const noexcept {
    report r = call_report(self, kind, p, bytes, alignment);
    raise(errors, r);
}

void block_reporter::block(error_kind kind, const void* p, const metadata::block_entry& known, std::size_t bytes,
                           std::size_t alignment) const noexcept {
    report r = call_report(self, kind, p, bytes, alignment);
    add_block(r, known);
    raise(errors, r);
}

void block_reporter::limit(std::size_t limit, std::size_t in_use, std::size_t bytes,
                           std::size_t alignment) const noexcept {
    report r = call_report(self, error_kind::limit_exceeded, nullptr, bytes, alignment);
    r.limit = limit;
    r.in_use = in_use;
    raise(errors, r);
}

void block_reporter::bad_pointer(metadata::block_table::outcome why, const void* p, const metadata::block_entry& found,
                                 std::size_t bytes, std::size_t alignment) const noexcept {
    using relation = metadata::block_table::relation;
    report r = call_report(self, error_kind::invalid_free, p, bytes, alignment);
    if (p == nullptr) {
        r.kind = error_kind::null_free;
        raise(errors, r);
        return;
    }
    // Another owner comes first: the address may have been ours once and be theirs now. But that an upstream owns the
    // address of a block we freed is no wonder.
    const bool freed_here = why == metadata::block_table::outcome::freed;
    metadata::owned_block theirs;
    if (const resource_ref owner =
            find_owner_anywhere(p, self, freed_here ? metadata::below::skip : metadata::below::ask, &theirs);
        owner.id != 0) {
        add_owner(r, owner, theirs);
        if (freed_here && found.free_thread != 0) {
            r.freed = found.freed;
            r.hint = hint_second_free_or_wrong;
        }
    } else if (freed_here) {
        add_block(r, found);
        if (found.free_thread != 0) {
            r.kind = error_kind::double_free;
        } else {
            r.hint = "its memory went away with the upstream's release() before it was freed";
        }
    } else {
        metadata::block_entry close;
        const relation how = blocks.nearest(p, near_bytes, close);
        if (how == relation::inside) {
            r.kind = error_kind::interior_free;
            add_block(r, close);
        } else if (!add_former_owner(r, how == relation::near ? close.address : nullptr) && how == relation::near) {
            r.nearest_only = true;
            add_block(r, close);
        }
    }
    raise(errors, r);
}

bool block_reporter::is_anothers(const void* p, std::size_t bytes, std::size_t alignment) const noexcept {
    metadata::block_entry known;
    if (p == nullptr || !blocks.find(p, known) || !known.live ||
        (known.size == bytes && known.alignment == alignment)) {
        return false;
    }
    metadata::owned_block theirs;
    const resource_ref owner = other_owner(p, bytes, alignment, self, theirs);
    // What the upstream gave for this very block may look like what was given: a block of no bytes takes one of it.
    const metadata::block_below mine = below_of != nullptr ? below_of(core, known) : metadata::block_below{};
    const bool is_its_memory =
        known.size != bytes && theirs.block.address == mine.base && theirs.block.size == mine.bytes;
    if (owner.id == 0 || is_its_memory) {
        return false;
    }
    report r = call_report(self, error_kind::wrong_resource, p, bytes, alignment);
    add_owner(r, owner, theirs);
    raise(errors, r);
    return true;
}

void block_reporter::mismatch(const void* p, const metadata::block_entry& known, std::size_t bytes,
                              std::size_t alignment) const noexcept {
    if (known.size != bytes) {
        report r = call_report(self, error_kind::size_mismatch, p, bytes, alignment);
        add_block(r, known);
        r.block.state = block_state::live;  // it was, until this call
        if (metadata::block_entry former; blocks.find_former(p, bytes, former)) {
            r.freed = former.freed;
            r.hint = hint_second_free_or_mismatch;
        }
        raise(errors, r);
    }
    if (known.alignment != alignment) {
        block(error_kind::alignment_mismatch, p, known, bytes, alignment);
    }
}

void block_reporter::leave_blocks() const noexcept {
    metadata::leave_behind_filled(self, [&](metadata::remains& left) noexcept {
        blocks.for_each_live(
            [&](const metadata::block_entry& e) noexcept { left.add_block(metadata::describe(e), e.allocated); });
    });
}

std::size_t block_reporter::leaks(error_kind kind, std::string_view hint) const noexcept {
    leak_listing listing(self);
    blocks.for_each_live([&](const metadata::block_entry& e) noexcept {
        const metadata::block_below below =
            below_of != nullptr ? below_of(core, e) : metadata::block_below{e.address, e.size};
        listing.add(e.allocated, e.size, e.address, e.serial, below);
    });
    const std::size_t count = listing.blocks();
    if (count != 0) {
        report r = report_of(self, kind);
        listing.fill(r);
        r.hint = hint;
        raise(errors, r);
    }
    return count;
}

void block_reporter::winked_out() const noexcept {
    leaks(error_kind::live_at_destruction, "the upstream is released while they are in use: what they own is lost");
}

void report_destroyed(const void* address, std::string_view type, const void* p, std::size_t bytes,
                      std::size_t alignment) noexcept {
    // The resource's own tally died with it.
    static constinit error_tally nobody;
    const metadata::resource_record* const record = metadata::find_dead_resource(address);
    report r = call_report(record, error_kind::destroyed_resource, p, bytes, alignment);
    if (record == nullptr) {
        r.resource.type = type;
        r.resource.address = address;
        // Whoever was constructed has left a pointer to virtual functions behind.
        const void* functions = nullptr;
        std::memcpy(&functions, address, sizeof functions);
        if (functions == nullptr) {
            r.fault_cause = "used before its construction, its object is still zero";
            r.hint = hint_of_early_use;
        }
    }
    raise(nobody, r);
}

}  // namespace pmr_debug::detail
