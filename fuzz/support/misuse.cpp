// Misuse, planted on purpose, with what must be reported of it.

#include "support/checked.hpp"

#include <algorithm>
#include <bit>

namespace fuzz {

using pmr_debug::block_state;
using pmr_debug::dead_unit;
using pmr_debug::reuse;
using pmr_debug::threading;

namespace {

constexpr std::size_t page = 4096;
/// Damage planted and not yet reported, so that one check() reports less than a sink holds.
constexpr std::size_t most_damage = 60;

}  // namespace

void checked_session::plan_upstream(fuzz_input& in) {
    if (stub_ == nullptr) {
        return;
    }
    const std::size_t calls = in.byte() % 6;
    auto a = fuzz_upstream::answer::refusal;
    const std::size_t what = in.byte() % 8;
    if (what == 5 && reports()) {
        a = fuzz_upstream::answer::null;
    } else if (what == 6 && reports()) {
        a = fuzz_upstream::answer::misaligned;
    } else if (what == 7 && reports() &&
               (k_.is == family::tracking || k_.is == family::temp ||
                (k_.is == family::canary && k_.rules.freed == reuse::immediate) ||
                (k_.is == family::general_purpose && k_.rules.freed == reuse::never))) {
        a = fuzz_upstream::answer::again;
    }
    static constexpr const char* words[] = {"", "the upstream will refuse", "the upstream will answer null",
                                            "the upstream will misalign", "the upstream will answer memory in use"};
    note(words[static_cast<int>(a)]);
    stub_->plan(calls, a);
}

void checked_session::extra(fuzz_input& in) {
    const std::size_t what = in.byte() % 24;
    if (what >= 20) {
        special(in);
        return;
    }
    if (what >= 18 || !reports()) {
        compare_statistics();
        compare_counts();
        return;
    }
    switch (what) {
        case 0:
        case 1: double_free(in); break;
        case 2:
        case 3: wrong_arguments(in); break;
        case 4:
        case 5: interior_free(in); break;
        case 6: stray_free(in); break;
        case 7:
        case 8: wrong_resource(in); break;
        case 9:
        case 10:
        case 11: damage_live(in); break;
        case 12: heal(in); break;
        case 13:
        case 14: write_after_free(in); break;
        case 15: check_all(); break;
        case 16: leaks_now(); break;
        default: bad_alignment(in); break;
    }
}

// ---- frees that are wrong -------------------------------------------------------------------------------------------

bool checked_session::remembers_for_sure(const dead_block& d) const {
    switch (k_.is) {
        case family::temp: return true;  // blocks that went with a rewind are not in the list
        case family::general_purpose:
            return k_.rules.freed != reuse::immediate && !k_.tight && !reused_ && dead_bytes_ < (std::size_t{1} << 24);
        case family::end_of_page: return k_.rules.freed != reuse::immediate && !k_.tight && !reused_;
        case family::pass_through: return false;
        default: break;
    }
    // A ring for each shard of the table, which may all get the same addresses.
    const std::size_t shards = k_.is == family::pages || k_.rules.threads == threading::synchronized ? 64 : 1;
    return frees_ - d.order < (k_.freed_records + shards - 1) / shards;
}

bool checked_session::forgets_for_sure(const dead_block& d) const {
    if (k_.is != family::tracking) {
        return false;
    }
    return k_.freed_records == 0 ||
           (k_.rules.threads != threading::synchronized && frees_ - d.order >= k_.freed_records);
}

void checked_session::double_free(fuzz_input& in) {
    if (dead_order_.empty()) {
        return;
    }
    // The latest ones more often.
    const std::size_t n = dead_order_.size();
    const std::size_t back = in.one_in(3) ? in.below(n) : in.byte() % std::min<std::size_t>(n, 16);
    const std::uintptr_t at = dead_order_[n - 1 - back];
    const auto found = dead_.find(at);
    if (found == dead_.end() || block_at(at) != nullptr) {
        return;  // in use again
    }
    const dead_block d = found->second;
    auto* const p = reinterpret_cast<void*>(at);
    const std::size_t how = in.byte() % 4;
    const std::size_t bytes = how == 1 ? d.bytes + 1 : how == 2 ? in.block_size(options_.largest) : d.bytes;
    const std::size_t alignment = how == 3 ? in.alignment(64) : d.alignment;
    note("free again", p, bytes, alignment);
    expect_foreign(p, bytes, alignment);
    expectation e = about_call(error_kind::double_free, p, bytes, alignment);
    if (remembers_for_sure(d)) {
        e.block = known(p, d);
    } else if (forgets_for_sure(d)) {
        e.kinds = {error_kind::invalid_free, error_kind::interior_free};
    } else {
        e.kinds = {error_kind::double_free, error_kind::invalid_free, error_kind::interior_free};
    }
    expect(std::move(e));
    deallocate(p, bytes, alignment);
    settle();
}

void checked_session::wrong_arguments(fuzz_input& in) {
    if (blocks_.empty()) {
        return;
    }
    const std::size_t index = in.below(blocks_.size());
    const fuzz_block b = blocks_[index];
    std::size_t bytes = b.bytes;
    std::size_t alignment = b.alignment;
    const std::size_t how = in.byte();
    if (how % 4 != 1) {
        static constexpr std::size_t steps[] = {1, 8, 16, 4096};
        const std::size_t by = steps[how / 4 % 4];
        bytes = how / 16 % 2 == 0 || b.bytes < by ? b.bytes + by : b.bytes - by;
        bytes = how >= 240 ? SIZE_MAX - how : bytes;
    }
    if (how % 4 == 1 || how % 4 == 2) {
        static constexpr std::size_t odd[] = {1, 2, 8, 16, 64, 0, 3, 4096};
        alignment = odd[in.byte() % 8];
    }
    free_block_as(index, bytes, alignment);
}

void checked_session::interior_free(fuzz_input& in) {
    if (blocks_.empty()) {
        return;
    }
    const fuzz_block b = blocks_[in.below(blocks_.size())];
    if (b.bytes < 2) {
        return;
    }
    std::byte* const p = b.p + 1 + in.below(b.bytes - 1);
    const std::size_t bytes = in.one_in(2) ? b.bytes : in.byte();
    note("free the inside of", b);
    note("  at", p, bytes, b.alignment);
    expect_foreign(p, bytes, b.alignment);
    expectation e = about_call(error_kind::interior_free, p, bytes, b.alignment);
    if (dead_.count(reinterpret_cast<std::uintptr_t>(p)) != 0 || k_.is == family::temp) {
        // A block began there before this one came.
        e.kinds = {error_kind::interior_free, error_kind::double_free, error_kind::invalid_free};
    }
    e.block = known(b, block_state::live);
    expect(std::move(e));
    deallocate(p, bytes, b.alignment);
    settle();
}

void checked_session::stray_free(fuzz_input& in) {
    alignas(64) static std::byte nobodys[256];
    const std::size_t how = in.byte();
    const std::size_t bytes = in.byte();
    void* const p = how % 3 == 0 ? nullptr : nobodys + how % 200;
    note(p == nullptr ? "free null" : "free what is no block", p, bytes, 8);
    expect_foreign(p, bytes, 8);
    expect(about_call(p == nullptr ? error_kind::null_free : error_kind::invalid_free, p, bytes, 8));
    deallocate(p, bytes, 8);
    settle();
}

void checked_session::make_other() {
    if (!other_.has_value()) {
        other_.emplace(&strange_memory_, pmr_debug::tracking_options{.name = "other", .handler = &sink_});
        other_block_ = other_->allocate(40, 8);
    }
}

void checked_session::wrong_resource(fuzz_input& in) {
    make_other();
    const std::size_t how = in.byte();
    if (how % 2 == 0 || blocks_.empty()) {
        note("free a block of another resource", other_block_, 40, 8);
        expect_foreign(other_block_, 40, 8);
        expectation e = about_call(error_kind::wrong_resource, other_block_, 40, 8);
        e.owner = &*other_;
        e.block = known_block{.p = other_block_, .bytes = 40, .alignment = 8, .serial = 1, .state = block_state::live};
        expect(std::move(e));
        deallocate(other_block_, 40, 8);
        settle();
        return;
    }
    const fuzz_block b = blocks_[in.below(blocks_.size())];
    note("let another resource free", b);
    expectation e = about_call(error_kind::wrong_resource, b.p, b.bytes, b.alignment);
    e.resource = &*other_;
    e.owner = &resource_;
    e.block = known(b, block_state::live);
    if (k_.rules.threads == threading::unchecked) {
        // Without locks, it cannot be asked by a thread that was not the last to use it.
        e.kinds.push_back(error_kind::invalid_free);
        e.owner = nullptr;
    }
    expect(std::move(e));
    call([&] { other_->deallocate(b.p, b.bytes, b.alignment); });
    settle();
}

// ---- damage ---------------------------------------------------------------------------------------------------------

std::size_t checked_session::room_before(const fuzz_block& b) const {
    const policy& p = k_.rules;
    if (k_.is == family::canary && p.guard_bytes != 0) {
        const std::size_t whole = (p.guard_bytes + b.alignment - 1) & ~(b.alignment - 1);
        return p.exact_alignment ? whole | b.alignment : whole;
    }
    if (k_.is == family::general_purpose && p.guard_bytes != 0) {
        constexpr std::size_t largest_slot = 8192;
        constexpr std::size_t line = 64;
        const std::size_t need = b.bytes + p.guard_bytes + (p.exact_alignment ? b.alignment : 0);
        if (need <= largest_slot && b.alignment <= page) {
            return 0;  // some have a canary before them, others a neighbour
        }
        if (p.exact_alignment) {
            return b.alignment < line ? line + b.alignment : std::min<std::size_t>(b.alignment, page);
        }
        return b.alignment <= page ? std::max<std::size_t>(b.alignment, line) : 0;
    }
    if (k_.is == family::end_of_page && p.guard_bytes != 0 && k_.before_guard && b.bytes != 0) {
        return std::min<std::size_t>(k_.window, reinterpret_cast<std::uintptr_t>(b.p) % page);
    }
    return 0;
}

std::size_t checked_session::room_behind(const fuzz_block& b) const {
    const policy& p = k_.rules;
    if (p.guard_bytes == 0) {
        return 0;
    }
    switch (k_.is) {
        case family::general_purpose:
        case family::temp: return p.guard_bytes;
        case family::canary: {
            const std::size_t unit = (p.exact_alignment ? room_before(b) : 0) + b.bytes;
            return p.guard_bytes + (8 - unit % 8) % 8;
        }
        case family::end_of_page: {
            if (b.bytes == 0) {
                return 0;
            }
            if (k_.before_guard) {
                const std::size_t unit = std::min(b.alignment, page);
                return (unit - b.bytes % unit) % unit;
            }
            const std::size_t left = (page - reinterpret_cast<std::uintptr_t>(b.p + b.bytes) % page) % page;
            return std::min(k_.window, left);
        }
        default: return 0;
    }
}

void checked_session::damage_live(fuzz_input& in) {
    if (blocks_.empty() || live_damage_.size() >= most_damage) {
        return;
    }
    const fuzz_block b = blocks_[in.below(blocks_.size())];
    const std::size_t before = room_before(b);
    const std::size_t behind = room_behind(b);
    if (before + behind == 0) {
        return;
    }
    pokes& all = live_damage_[b.p];
    for (std::size_t n = 1 + in.byte() % 4; n != 0; --n) {
        const std::size_t where = in.below(before + behind);
        std::byte* const at = where < before ? b.p - before + where : b.p + b.bytes + (where - before);
        auto old = static_cast<std::uint8_t>(*at);
        std::uint8_t now = in.byte();
        const auto same = std::find_if(all.begin(), all.end(), [at](const poke& p) { return p.at == at; });
        if (same != all.end()) {
            same->now = now;
        } else {
            all.push_back({at, old, now});
        }
        *const_cast<volatile std::byte*>(at) = static_cast<std::byte>(now);
        note(where < before ? "write before" : "write behind", b);
        note("  a byte", at);
    }
}

void checked_session::heal(fuzz_input& in) {
    if (live_damage_.empty()) {
        return;
    }
    auto i = live_damage_.begin();
    std::advance(i, static_cast<std::ptrdiff_t>(in.below(live_damage_.size())));
    note("undo the damage around", i->first);
    for (const poke& p : i->second) {
        *const_cast<volatile std::byte*>(p.at) = static_cast<std::byte>(p.old);
    }
    live_damage_.erase(i);
}

bool checked_session::may_write_dead(std::uintptr_t address, const dead_block& d) const {
    const policy& p = k_.rules;
    if (d.damaged || d.bytes == 0 || !p.fill || k_.tight || reused_) {
        return false;
    }
    switch (k_.is) {
        case family::general_purpose:
            return p.freed == reuse::never && (!k_.own_pages || p.dead == dead_unit::keep) &&
                   dead_bytes_ < (std::size_t{1} << 24);
        case family::canary: {
            const auto* const at = reinterpret_cast<const void*>(address);
            return std::find(quarantine_.begin() + static_cast<std::ptrdiff_t>(quarantine_head_), quarantine_.end(),
                             at) != quarantine_.end();
        }
        case family::temp: return true;
        case family::end_of_page:
            // Few enough that no strip is used up; not larger than what waits.
            return ((d.bytes + d.alignment - 1) & ~(d.alignment - 1)) <= page && d.alignment <= page &&
                   allocations_ < 200 && p.dead != dead_unit::trap_at_once && p.freed != reuse::immediate;
        default: return false;
    }
}

void checked_session::write_after_free(fuzz_input& in) {
    if (dead_order_.empty() || dead_damage_.size() >= most_damage) {
        return;
    }
    if (k_.is == family::canary) {
        follow_quarantine();  // it may have been given up for a request that was refused below
    }
    const std::size_t n = dead_order_.size();
    const std::uintptr_t at = dead_order_[n - 1 - in.byte() % std::min<std::size_t>(n, 64)];
    const auto found = dead_.find(at);
    if (found == dead_.end() || block_at(at) != nullptr || !may_write_dead(at, found->second)) {
        return;
    }
    auto* const p = reinterpret_cast<std::byte*>(at);
    const std::size_t offset = in.below(found->second.bytes);
    const auto old = static_cast<std::uint8_t>(p[offset]);
    pokes& all = dead_damage_[p];
    if (std::any_of(all.begin(), all.end(), [&](const poke& x) { return x.at == p + offset; })) {
        return;
    }
    if (all.empty() && old != 0xDD && k_.is != family::canary) {
        fail("a freed block is not filled");
    }
    const auto now = static_cast<std::uint8_t>(old ^ static_cast<std::uint8_t>(1 + in.byte() % 255));
    note("write into freed", p + offset, found->second.bytes, found->second.alignment);
    *const_cast<volatile std::byte*>(p + offset) = static_cast<std::byte>(now);
    all.push_back({p + offset, old, now});
}

// ---- questions ------------------------------------------------------------------------------------------------------

void checked_session::check_all() {
    if (k_.is == family::tracking || k_.is == family::pages || k_.is == family::pass_through) {
        return;
    }
    note("check()");
    std::size_t damaged = dead_damage_.size() + stale_damage_;
    for (const fuzz_block& b : blocks_) {
        const std::size_t before = expected_.size();
        expect_live_damage(b, false);
        damaged += expected_.size() != before ? 1 : 0;
    }
    std::size_t found = 0;
    call([&] { found = subject_.check(); });
    settle();
    if (found != damaged) {
        fail("check() returned " + std::to_string(found) + " damaged blocks, there are " + std::to_string(damaged));
    }
    if (!dead_damage_.empty()) {
        fail("missing report: check() did not see a write after free");
    }
    checked();
}

void checked_session::leaks_now() {
    if (k_.is == family::pages || k_.is == family::temp || k_.is == family::pass_through) {
        return;
    }
    note("report_leaks()");
    expect_live(error_kind::leak, blocks_.size(), live_bytes_);
    std::size_t found = 0;
    call([&] { found = subject_.report_leaks(); });
    settle();
    if (found != blocks_.size()) {
        fail("report_leaks() returned " + std::to_string(found) + ", in use are " + std::to_string(blocks_.size()));
    }
}

void checked_session::bad_alignment(fuzz_input& in) {
    static constexpr std::size_t odd[] = {0, 3, 6, 12, 24, 48, 4097, SIZE_MAX};
    const std::size_t alignment = odd[in.byte() % 8];
    const std::size_t bytes = in.byte();
    note("allocate with an alignment that cannot be", nullptr, bytes, 0);
    if (k_.is != family::general_purpose) {
        expect_foreign(nullptr, bytes, alignment);
    }
    expect(about_call(error_kind::bad_alignment, nullptr, bytes, alignment));
    if (ask(bytes, alignment) != nullptr) {
        fail("gave memory for an alignment of " + std::to_string(alignment));
    }
    ++refusals_;
    settle();
}

}  // namespace fuzz
