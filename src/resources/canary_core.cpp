#include "resources/canary_core.hpp"

#include "os/other_tools.hpp"
#include "report/writer.hpp"
#include "resources/chain_check.hpp"
#include "resources/upstream.hpp"

#include <algorithm>
#include <bit>
#include <new>

namespace pmr_debug::detail {

namespace {

using table_outcome = metadata::block_table::outcome;

constexpr const char* type_name = "canary_resource";
// Address space, not memory: records of some 50 million live blocks.
constexpr std::size_t records_reserve = std::size_t{1} << 32;
constexpr std::uint8_t fresh_byte = 0xAA;
constexpr std::uint8_t freed_byte = 0xDD;

// Spreads a seed over a key (the finaliser of MurmurHash3).
constexpr std::uint64_t key_of(std::uint64_t seed, std::uint64_t what) noexcept {
    std::uint64_t k = seed + what * 0x9E37'79B9'7F4A'7C15U;
    k = (k ^ (k >> 33U)) * 0xFF51'AFD7'ED55'8CCDU;
    k = (k ^ (k >> 33U)) * 0xC4CE'B9FE'1A85'EC53U;
    return k ^ (k >> 33U);
}

bool canary_owns(void* core, const void* p, metadata::owned_block* out) noexcept {
    auto& c = *static_cast<canary_core*>(core);
    if (c.shape.threads == threading::unchecked && !c.thread.is_mine()) {
        return false;
    }
    metadata::block_entry e;
    if (!c.blocks.find(p, e) || !e.live) {
        return false;
    }
    const metadata::block_below below = canary_core::below_of(&c, e);
    *out = {.block = metadata::describe(e), .allocated = e.allocated, .base = below.base, .total = below.bytes};
    return true;
}

void canary_visit_live(void* core, void (*visit)(const void* p, void* context) noexcept, void* context) noexcept {
    auto& c = *static_cast<canary_core*>(core);
    if (c.shape.threads == threading::unchecked && !c.thread.is_mine()) {
        return;
    }
    c.blocks.for_each_place([&](const metadata::block_table::place& b) noexcept { visit(b.address, context); });
}

bool canary_describes(void* core, std::uintptr_t address, metadata::address_finding* out) noexcept {
    const auto& c = *static_cast<const canary_core*>(core);
    bool found = false;
    const auto look = [&](const metadata::block_entry& e, bool gone_back) noexcept {
        const auto start = reinterpret_cast<std::uintptr_t>(e.address);
        const canary_layout at = c.layout(e.size, e.alignment);
        if (address < start - at.front || address >= start + e.size + at.back) {
            return true;
        }
        found = true;
        *out = metadata::find_in(address, metadata::describe(e), e.allocated, e.freed);
        out->gone_back = gone_back;
        return gone_back;  // a live block may have the address now
    };
    c.quarantine.peek([&](const metadata::block_entry& e) noexcept { return look(e, false); });
    if (!found) {
        c.blocks.peek([&](const metadata::block_entry& e) noexcept { return look(e, !e.live); });
    }
    return found;
}

}  // namespace

canary_core* canary_core::make(std::pmr::memory_resource* upstream, const canary_options& o, const policy& p,
                               const std::pmr::memory_resource* owner, trace_id born) {
    metadata::arena* const shared = metadata::process_arena();
    void* const place = shared != nullptr ? shared->allocate(sizeof(canary_core)) : nullptr;
    if (place == nullptr) {
        throw std::bad_alloc();
    }
    auto* const core = ::new (place) canary_core;
    core->given = upstream;
    core->shape = canary_shape_of(p);
    const bool watches = core->shape.checks && core->shape.threads == threading::synchronized;
    core->upstream = watches ? core->watch.over(upstream, core->errors) : upstream;
    core->alloc_frames = p.alloc_frames;
    core->free_frames = p.free_frames;
    core->guard_bytes = core->shape.guards ? p.guard_bytes : 0;
    core->exact = p.exact_alignment;
    core->odd = core->exact || core->guard_bytes == 0;
    core->guard = canary_pattern::guard(key_of(o.fill_seed, 1));
    if (o.fill_seed == 0) {
        core->fresh = canary_pattern::constant(fresh_byte);
        core->freed = canary_pattern::constant(freed_byte);
    } else {
        core->fresh = canary_pattern::random(key_of(o.fill_seed, 2));
        core->freed = canary_pattern::random(key_of(o.fill_seed, 3));
    }
    core->audit_winked_out = o.audit_winked_out;
    core->errors.handler.store(o.handler, std::memory_order_relaxed);
    if (core->shape.checks) {
        const unsigned shards = core->shape.threads == threading::synchronized ? metadata::block_table::max_shards : 1;
        if (!core->memory.open(records_reserve, metadata::arena::home::shared) ||
            !core->blocks.open(core->memory, shards, o.freed_records)) {
            core->memory.close();
            core->~canary_core();
            shared->free(place, sizeof(canary_core));
            throw std::bad_alloc();
        }
        core->watched = os::under_valgrind() || os::under_asan();
        core->quarantine.open(core->memory, o.quarantine_bytes, o.quarantine_blocks, core->held,
                              metadata::quarantines_below(upstream));
    }
    core->self =
        metadata::register_resource(metadata::resource_kind::canary, type_name, o.name, owner, upstream, core, born,
                                    core->shape.checks ? canary_owns : nullptr, stats_by_address<canary_resource_base>);
    if (core->shape.checks) {
        metadata::set_describe_address(core->self, canary_describes);
        metadata::set_visit_live(core->self, canary_visit_live);
    }
    core->watch.belongs_to(core->self);
    metadata::set_unchecked(core->self, core->shape.threads == threading::unchecked);
    metadata::set_fork(core->self, [](void* c, os::fork_locks& locks) noexcept {
        auto& mine = *static_cast<canary_core*>(c);
        mine.blocks.hold(locks);
        mine.usage.hold(locks);
        mine.quarantine.hold(locks);
        mine.memory.hold(locks);
    });
    report_cycle(core->self, core->errors);
    return core;
}

void canary_core::destroy() noexcept {
    quarantine.close();
    memory.close();
    this->~canary_core();
    metadata::process_arena()->free(this, sizeof(canary_core));
}

canary_layout canary_core::odd_layout(std::size_t bytes, std::size_t alignment) const noexcept {
    canary_layout at;
    at.alignment = exact ? 2 * alignment : alignment;
    if (guard_bytes == 0) {
        at.front = exact ? alignment : 0;
        at.total = at.front + (bytes != 0 ? bytes : 1);
        return at;
    }
    at.front = (guard_bytes + alignment - 1) & ~(alignment - 1);
    at.front |= exact ? alignment : 0;  // an odd multiple, from where the upstream's is an even one
    const std::size_t behind = at.front + bytes;
    at.back = guard_bytes + ((8 - (behind & 7U)) & 7U);
    at.total = behind + at.back;
    return at;
}

// ---- allocate ------------------------------------------------------------------------------------------------------

void canary_core::refuse_request(std::size_t bytes, std::size_t alignment) {
    usage.fail();
    if (shape.checks && !std::has_single_bit(alignment)) {
        reports().request(error_kind::bad_alignment, nullptr, bytes, alignment);
    }
    throw std::bad_alloc();
}

void* canary_core::ask_again(std::size_t bytes, std::size_t alignment) {
    bool went_back = false;
    for (retired_block b; quarantine.take_waiting(b);) {
        went_back = release(b) || went_back;
    }
    try {
        if (!went_back) {
            throw;
        }
        return ask_upstream(*upstream, bytes, alignment);
    } catch (...) {
        usage.fail();
        throw;
    }
}

void canary_core::refuse_memory(void* base, const canary_layout& at, std::size_t bytes, std::size_t alignment) {
    usage.fail();
    if (shape.checks) {
        const bool none = base == nullptr;
        reports().request(none ? error_kind::upstream_null : error_kind::upstream_misaligned, base, bytes,
                          none ? alignment : at.alignment);
    }
    if (base != nullptr) {
        upstream->deallocate(base, at.total, at.alignment);
    }
    throw std::bad_alloc();
}

void canary_core::refuse_record(table_outcome why, std::byte* p, const canary_layout& at, std::size_t bytes,
                                std::size_t alignment) {
    usage.fail();
    if (why == table_outcome::occupied) {
        // It belongs to the block that is there: giving it back would free that.
        metadata::block_entry existing;
        blocks.find(p, existing);
        reports().block(error_kind::upstream_overlap, p, existing, bytes, alignment);
    } else {
        upstream->deallocate(p - at.front, at.total, at.alignment);
    }
    throw std::bad_alloc();
}

// ---- deallocate ----------------------------------------------------------------------------------------------------

void canary_core::refuse_pointer(table_outcome why, void* p, metadata::block_entry& known, std::size_t bytes,
                                 std::size_t alignment) noexcept {
    if (why == table_outcome::unknown && p != nullptr && quarantine.find(p, known)) {
        why = table_outcome::freed;  // so long ago that the table forgot
    }
    reports().bad_pointer(why, p, known, bytes, alignment);
}

void canary_core::keep_overrun(const retired_block& b) noexcept {
    // Examined before it is kept, as whoever drains the quarantine gives it back.
    const canary_damage before = front_damage(b.block);
    const canary_damage behind = back_damage(b.block);
    if (watched) {
        close_all(b.block);
    }
    quarantine.keep(b);
    report_damage(error_kind::underrun, b.block, before);
    report_damage(error_kind::overrun, b.block, behind);
}

void canary_core::retire(const retired_block& b) noexcept {
    using outcome = canary_quarantine::outcome;
    if (!quarantine.takes(b.bytes)) {
        give_back(b);
        return;
    }
    retired_block oldest;
    outcome o = quarantine.put(b, oldest);
    if (o == outcome::no_memory) {
        if (watched) {
            open_all(b.block);
        }
        give_back(b);
        return;
    }
    while (o != outcome::done) {
        release(oldest);
        o = o == outcome::more ? quarantine.take_excess(oldest) : outcome::done;
    }
}

bool canary_core::release(const retired_block& b) noexcept {
    if (watched) [[unlikely]] {
        open_all(b.block);
    }
    if (is_whole(b)) [[likely]] {
        give_back(b);
        return true;
    }
    const canary_damage d = retired_damage(b);
    if (watched) {
        close_all(b.block);
    }
    quarantine.keep(b);
    report_damage(error_kind::write_after_free, b.block, d);
    return false;
}

void canary_core::give_back(const retired_block& b) noexcept {
    const canary_layout at = layout(b.block.size, b.block.alignment);
    let_go(at.total);
    upstream->deallocate(start(b.block) - at.front, at.total, at.alignment);
}

void canary_core::drain() noexcept {
    for (retired_block b; quarantine.take_any(b);) {
        if (watched) {
            open_all(b.block);
        }
        give_back(b);
    }
    if (watched) {  // leaked blocks: their memory is the upstream's alone from here on
        blocks.for_each_live([&](const metadata::block_entry& e) noexcept { open_guards(e); });
    }
}

std::size_t canary_core::forget(trace_id here) noexcept {
    if (shape.checks) {
        thread.enter(shape.threads, here, errors, self);
        check();
        if (audit_winked_out) {
            reports().winked_out();
        }
        if (watched) {
            blocks.for_each_live([&](const metadata::block_entry& e) noexcept { open_all(e); });
        }
        blocks.erase_live(here);
        for (retired_block b; quarantine.take_any(b);) {
            if (watched) {
                open_all(b.block);
            }
        }
    }
    held.store(0, std::memory_order_relaxed);
    return usage.remove_all();
}

// ---- damage --------------------------------------------------------------------------------------------------------

canary_damage canary_core::front_damage(const metadata::block_entry& e) const noexcept {
    const std::size_t front = layout(e.size, e.alignment).front;
    return guard.examine(start(e) - front, front);
}

canary_damage canary_core::back_damage(const metadata::block_entry& e) const noexcept {
    return guard.examine(start(e) + e.size, layout(e.size, e.alignment).back);
}

bool canary_core::has_guards(const metadata::block_entry& e) const noexcept {
    const canary_layout at = layout(e.size, e.alignment);
    const std::byte* const p = start(e);
    return guard.guard_intact(p - at.front, at.front) && guard.guard_intact(p + e.size, at.back);
}

bool canary_core::is_whole(const retired_block& b) const noexcept {
    return (!shape.guards || has_guards(b.block)) && (!shape.fill || freed.intact(start(b.block), b.block.size));
}

canary_damage canary_core::retired_damage(const retired_block& b) const noexcept {
    canary_damage d = front_damage(b.block);
    if (shape.fill) {
        d.append(freed.examine(start(b.block), b.block.size));
    }
    d.append(back_damage(b.block));
    return d;
}

// What runs over a block's end, through its guard, breaks the one at the start of the next block, too; and the other
// way round. Of the latter it looks like a write at its own end.
canary_core::culprit canary_core::look_beside(error_kind kind, const metadata::block_entry& e,
                                              const canary_damage& d) noexcept {
    // A byte that was written may be what it was by chance.
    constexpr std::ptrdiff_t by_chance = 1;
    constexpr std::size_t farthest = 16;  // what an upstream may keep between two blocks
    const canary_layout at = layout(e.size, e.alignment);
    const std::byte* const low = start(e) - at.front;
    const std::byte* const high = low + at.total;
    const std::byte* const behind = high - at.back;
    const auto broken = static_cast<std::ptrdiff_t>(d.bytes);
    const bool from_before = kind != error_kind::overrun && d.first - low <= by_chance;
    const bool from_behind =
        kind == error_kind::overrun && d.first - behind > by_chance && high - d.first <= broken + by_chance;
    culprit found;
    if (!shape.guards || at.front == 0 || (!from_before && !from_behind)) {
        return found;
    }
    const auto look = [&](const metadata::block_entry& b, auto open, auto close) noexcept {
        const canary_layout its = layout(b.size, b.alignment);
        const auto gap = from_before ? reinterpret_cast<std::uintptr_t>(low) -
                                           reinterpret_cast<std::uintptr_t>(start(b) - its.front + its.total)
                                     : reinterpret_cast<std::uintptr_t>(start(b) - its.front) -
                                           reinterpret_cast<std::uintptr_t>(high);
        if (gap > std::max(farthest, at.alignment)) {
            return true;
        }
        if (watched) {
            open(b);
        }
        const std::size_t guard_size = from_before ? its.back : its.front;
        const std::size_t its_broken = from_before ? back_damage(b).bytes : front_damage(b).bytes;
        if (watched) {
            close(b);
        }
        if (its_broken + by_chance >= guard_size) {
            found = {.block = b.address, .size = b.size, .overrun = from_before};
        }
        return found.block == nullptr;
    };
    // With the locks held, as blocks that are freed may be anybody's.
    blocks.for_each_live([&](const metadata::block_entry& b) noexcept {
        look(
            b, [this](const metadata::block_entry& x) noexcept { open_guards(x); },
            [this](const metadata::block_entry& x) noexcept { show_live(x); });
    });
    if (found.block == nullptr) {
        quarantine.visit([&](const metadata::block_entry& b) noexcept {
            return look(
                b, [this](const metadata::block_entry& x) noexcept { open_all(x); },
                [this](const metadata::block_entry& x) noexcept { close_all(x); });
        });
    }
    return found;
}

void canary_core::report_damage(error_kind kind, const metadata::block_entry& e, const canary_damage& d) noexcept {
    if (d.first == nullptr) {
        return;
    }
    report r = report_of(self, kind);
    r.block = metadata::describe(e);
    r.allocated = e.allocated;
    r.freed = e.freed;
    r.first_bad = d.first;
    r.bad_bytes = d.bytes;
    r.bad_value = d.found;
    r.expected_value = d.expected;
    metadata::owned_block other;
    const auto bad = reinterpret_cast<std::uintptr_t>(d.first);
    const auto look = [&](const metadata::block_entry& b) noexcept {
        const auto begin = reinterpret_cast<std::uintptr_t>(b.address);
        const canary_layout at = layout(b.size, b.alignment);
        // With its guards: those are written, too.
        if (b.address != e.address && bad - (begin - at.front) < at.total) {
            other = {.block = metadata::describe(b), .allocated = b.allocated};
        }
        return other.block.address == nullptr;
    };
    blocks.for_each_live(look);
    if (other.block.address == nullptr) {
        quarantine.peek(look);
    }
    if (other.block.address != nullptr) {
        add_covering(r, {}, other);
    } else {
        look_for_covering(r, self);
    }
    fixed_text<256> hint;
    if (r.covering.address == nullptr) {
        if (const culprit c = look_beside(kind, e, d); c.block != nullptr) {
            writer(hint.sink, &hint)
                .text(c.overrun ? "the guard behind the " : "the guard before the ")
                .number(c.size)
                .text("-byte block at ")
                .address(c.block)
                .text(c.overrun ? ", right before this one, is broken without a gap up to here: look at what writes to "
                                  "the end of that block"
                                : ", right behind this one, is broken without a gap from here: look at what writes to "
                                  "the start of that block");
            r.hint = hint.view();
        }
    }
    raise(errors, r);
}

std::size_t canary_core::check_live() noexcept {
    struct finding {
        metadata::block_entry block;
        canary_damage before;
        canary_damage behind;
    };
    // Under the table's locks no block can be freed, but nothing can be reported either: count, make room, note down.
    std::size_t count = 0;
    blocks.for_each_live([&](const metadata::block_entry& e) noexcept {
        if (watched) {
            open_guards(e);
        }
        count += has_guards(e) ? 0U : 1U;
        if (watched) {
            show_live(e);
        }
    });
    if (count == 0) {
        return 0;
    }
    finding few[16];
    const std::size_t room_bytes = count * sizeof(finding);
    auto* const room = count > std::size(few) ? static_cast<finding*>(memory.allocate(room_bytes)) : nullptr;
    finding* const found = room != nullptr ? room : few;
    const std::size_t most = room != nullptr ? count : std::size(few);
    std::size_t n = 0;
    blocks.for_each_live([&](const metadata::block_entry& e) noexcept {
        if (watched) {
            open_guards(e);
        }
        if (n != most && !has_guards(e)) {
            found[n++] = {.block = e, .before = front_damage(e), .behind = back_damage(e)};
        }
        if (watched) {
            show_live(e);
        }
    });
    std::sort(found, found + n, [](const finding& a, const finding& b) { return a.block.serial < b.block.serial; });
    for (std::size_t i = 0; i < n; ++i) {
        report_damage(error_kind::underrun, found[i].block, found[i].before);
        report_damage(error_kind::overrun, found[i].block, found[i].behind);
    }
    if (room != nullptr) {
        memory.free(room, room_bytes);
    }
    return count;
}

std::size_t canary_core::check_waiting() noexcept {
    canary_quarantine::finding found[canary_quarantine::batch];
    std::size_t count = 0;
    for (std::uint64_t next = 0; next != canary_quarantine::end;) {
        const std::size_t n = quarantine.sweep(next, found, [this](const retired_block& b) noexcept {
            if (watched) {
                open_all(b.block);
            }
            const canary_damage d = is_whole(b) ? canary_damage{} : retired_damage(b);
            if (watched) {
                close_all(b.block);
            }
            return d;
        });
        for (std::size_t i = 0; i < n; ++i) {
            report_damage(error_kind::write_after_free, found[i].block, found[i].damage);
        }
        count += n;
    }
    return count;
}

std::size_t canary_core::check() noexcept {
    if (!shape.checks) {
        return 0;
    }
    return (shape.guards ? check_live() : 0) + (shape.waits ? check_waiting() : 0);
}

}  // namespace pmr_debug::detail
