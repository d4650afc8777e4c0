#include "support/checked.hpp"

#include <algorithm>
#include <bit>

namespace fuzz {

using pmr_debug::block_state;
using pmr_debug::reuse;
using pmr_debug::threading;

void* static_memory::do_allocate(std::size_t bytes, std::size_t alignment) {
    used_ = (used_ + alignment - 1) & ~(alignment - 1);
    if (alignment > 64 || bytes > sizeof memory_ - used_) {
        throw std::bad_alloc();
    }
    used_ += bytes;
    return memory_ + used_ - bytes;
}

checked_session::checked_session(subject& s, const knowledge& k, fuzz_upstream* stub, fuzz_program& program,
                                 report_sink& sink, const fuzz_options& options)
    : fuzz_session(s.resource(), stub, program, options), subject_(s), k_(k), stub_(stub), sink_(sink) {
    if (stub_ != nullptr && k_.is == family::canary) {
        // An overlap with a freed block that the canary still keeps, as a damaged one, is not noticed: addresses that
        // the upstream uses again look the same.
        stub_->lend_only([this](const std::byte* p, std::size_t bytes) {
            return std::any_of(blocks_.begin(), blocks_.end(),
                               [&](const fuzz_block& b) { return b.p >= p && b.p < p + bytes; });
        });
    }
    sink_.clear();
    allocate(1, 1);  // binds a single_checked resource to this thread
}

// ---- expectations ---------------------------------------------------------------------------------------------------

expectation checked_session::about(error_kind kind) const {
    expectation e;
    e.kinds = {kind};
    e.resource = &resource_;
    return e;
}

expectation checked_session::about_call(error_kind kind, const void* p, std::size_t bytes,
                                        std::size_t alignment) const {
    expectation e = about(kind);
    e.compare_pointer = true;
    e.pointer = p;
    e.compare_given = true;
    e.given_bytes = bytes;
    e.given_alignment = alignment;
    return e;
}

known_block checked_session::known(const fuzz_block& b, block_state state) const {
    return {.p = b.p,
            .bytes = b.bytes,
            .alignment = b.alignment,
            .serial = numbered() ? b.number : 0,
            .state = state,
            .alloc_thread = numbers_[b.thread]};
}

known_block checked_session::known(const void* p, const dead_block& d) const {
    return {.p = p,
            .bytes = d.bytes,
            .alignment = d.alignment,
            .serial = numbered() ? d.number : 0,
            .state = block_state::freed,
            .alloc_thread = numbers_[d.alloc_thread],
            .free_thread = numbers_[d.free_thread]};
}

void checked_session::expect_foreign(const void* p, std::size_t bytes, std::size_t alignment, bool compare) {
    if (!reports() || k_.rules.threads != threading::single_checked || thread_ == 0 || k_.is == family::pages ||
        k_.is == family::pass_through) {
        return;
    }
    foreign_used_ = k_.is == family::general_purpose;
    // The general-purpose resource looks at the thread before it looks at the call.
    compare = compare && alignment != 0;  // with 0 the report says nothing of the call
    expectation e = compare && k_.is != family::general_purpose
                        ? about_call(error_kind::foreign_thread, p, bytes, alignment)
                        : about(error_kind::foreign_thread);
    e.other_thread = numbers_[0];
    expect(std::move(e));
}

bool checked_session::expect_limit(std::size_t bytes, std::size_t alignment) {
    const bool too_many_bytes = k_.limit_bytes != 0 && (bytes > k_.limit_bytes || live_bytes_ > k_.limit_bytes - bytes);
    const bool too_many_blocks = k_.limit_blocks != 0 && blocks_.size() >= k_.limit_blocks;
    if (!too_many_bytes && !too_many_blocks) {
        return false;
    }
    if (reports() || k_.is == family::general_purpose) {
        expectation e = about_call(error_kind::limit_exceeded, nullptr, bytes, alignment);
        e.compare_limit = true;
        e.limit = too_many_bytes ? k_.limit_bytes : k_.limit_blocks;
        e.in_use = too_many_bytes ? live_bytes_ : blocks_.size();
        expect(std::move(e));
    }
    return true;
}

checked_session::verdict checked_session::expect_request(std::size_t bytes, std::size_t alignment) {
    expect_foreign(nullptr, bytes, alignment);
    if (expect_limit(bytes, alignment)) {
        return verdict::refused;
    }
    return k_.may_run_out ? verdict::either : verdict::granted;
}

void checked_session::expect_impossible(std::size_t bytes, std::size_t alignment) {
    expect_foreign(nullptr, bytes, alignment);
    // Sizes that no sum can reach are refused before the limits are looked at. What is more than all addresses, too, by
    // the resources that ask for memory of their own.
    if (bytes <= SIZE_MAX / 2 && alignment <= SIZE_MAX / 2 - bytes && k_.is != family::general_purpose &&
        k_.is != family::end_of_page) {
        expect_limit(bytes, alignment);
    }
}

std::optional<known_damage> checked_session::sum(const pokes& all, const std::byte* from, const std::byte* to) {
    std::optional<known_damage> d;
    for (const poke& p : all) {
        if (p.at < from || p.at >= to || p.now == p.old) {
            continue;
        }
        if (!d.has_value()) {
            d.emplace();
        }
        d->bytes += 1;
        if (d->first == nullptr || p.at < d->first) {
            d->first = p.at;
            d->now = p.now;
            d->expected = p.old;
        }
    }
    return d;
}

void checked_session::expect_live_damage(const fuzz_block& b, bool being_freed) {
    const auto found = live_damage_.find(b.p);
    if (found == live_damage_.end()) {
        return;
    }
    const bool gone = being_freed && k_.is == family::general_purpose;
    const auto tell = [&](error_kind kind, const std::byte* from, const std::byte* to) {
        if (const std::optional<known_damage> d = sum(found->second, from, to); d.has_value()) {
            expectation e = about(kind);
            e.block = known(b, gone ? block_state::freed : block_state::live);
            e.damage = d;
            expect(std::move(e));
        }
    };
    tell(error_kind::underrun, nullptr, b.p);
    tell(error_kind::overrun, b.p + b.bytes, reinterpret_cast<const std::byte*>(UINTPTR_MAX));
}

void checked_session::expect_live(error_kind kind, std::size_t blocks, std::size_t bytes) {
    if (blocks != 0) {
        expectation e = about(kind);
        e.compare_leaks = true;
        e.leaked_blocks = blocks;
        e.leaked_bytes = bytes;
        expect(std::move(e));
    }
}

void checked_session::expect_free(const fuzz_block& b, std::size_t bytes, std::size_t alignment) {
    expect_foreign(b.p, bytes, alignment);
    if (!reports()) {
        return;
    }
    const auto differs = [&](error_kind kind) {
        expectation e = about_call(kind, b.p, bytes, alignment);
        e.block = known(b, block_state::live);
        expect(std::move(e));
    };
    if (b.bytes != bytes) {
        differs(error_kind::size_mismatch);
    }
    if (b.alignment != alignment) {
        differs(error_kind::alignment_mismatch);
    }
    expect_live_damage(b, true);
}

// ---- what follows a call --------------------------------------------------------------------------------------------

bool checked_session::uses_addresses_once() {
    const bool keeps = k_.is == family::general_purpose || k_.is == family::end_of_page;
    const bool meant = keeps && k_.rules.freed == reuse::never && k_.rules.checks;
    return meant && !k_.tight && !reused_ && dead_bytes_ < (std::size_t{1} << 24);
}

void checked_session::granted(const fuzz_block& b) {
    const auto at = reinterpret_cast<std::uintptr_t>(b.p);
    if (uses_addresses_once()) {
        auto near = dead_.upper_bound(at + (b.bytes != 0 ? b.bytes - 1 : 0));
        if (near != dead_.begin() &&
            at < std::prev(near)->first + std::max<std::size_t>(std::prev(near)->second.bytes, 1)) {
            // Only an end-of-page block of no bytes may share its address, with the guard page of another.
            if (std::prev(near)->second.bytes != 0 && b.bytes != 0) {
                fail("an address was handed out twice: block #" + std::to_string(b.number) + " overlaps freed block #" +
                     std::to_string(std::prev(near)->second.number));
            }
        }
    }
    if (dead_damage_.count(b.p) != 0) {
        fail("missing report: write_after_free of a block whose memory is used again");
    }
    dead_.erase(at);
}

void checked_session::freed(const fuzz_block& b) {
    ++frees_;
    dead_bytes_ += b.bytes + 64;
    bool damaged = false;
    if (const auto d = live_damage_.find(b.p); d != live_damage_.end()) {
        damaged = std::any_of(d->second.begin(), d->second.end(), [](const poke& p) { return p.now != p.old; });
        live_damage_.erase(d);
    }
    const auto at = reinterpret_cast<std::uintptr_t>(b.p);
    dead_[at] = {.bytes = b.bytes,
                 .alignment = b.alignment,
                 .number = b.number,
                 .order = frees_,
                 .alloc_thread = b.thread,
                 .free_thread = thread_,
                 .damaged = damaged};
    dead_order_.push_back(at);
    if (k_.is == family::canary && !damaged && k_.rules.checks && k_.rules.freed != reuse::immediate) {
        quarantine_.push_back(b.p);
        follow_quarantine();
    }
}

void checked_session::follow_quarantine() {
    // First in, first out: what waits is what was freed last. A block too large to wait leaves at once, but nothing is
    // written to blocks of such a tight quarantine.
    const std::size_t waiting = subject_.waiting();
    for (; quarantine_.size() - quarantine_head_ > waiting; ++quarantine_head_) {
        if (dead_damage_.count(quarantine_[quarantine_head_]) != 0) {
            fail("missing report: write_after_free of a block that left the quarantine");
        }
    }
    if (quarantine_.size() - quarantine_head_ < waiting) {
        fail("more blocks wait in the quarantine than were freed");
    }
}

void checked_session::consume(const report& r) {
    const unsigned slot = thread_;
    if (numbers_[slot] == 0) {
        numbers_[slot] = r.thread;
    } else if (r.thread != numbers_[slot]) {
        fail("the reporting thread is " + std::to_string(r.thread) + ", not " + std::to_string(numbers_[slot]) + ": " +
             words(r));
    }
    seen_[r.kind] += r.resource.address == &resource_ ? 1 : 0;
    if (r.kind == error_kind::write_after_free) {
        // May come whenever the resource looks at the memory again.
        const auto found = dead_damage_.find(r.block.address);
        const auto dead = dead_.find(reinterpret_cast<std::uintptr_t>(r.block.address));
        if (found != dead_damage_.end() && dead != dead_.end()) {
            expectation e = about(error_kind::write_after_free);
            e.block = known(r.block.address, dead->second);
            e.damage = sum(found->second, nullptr, reinterpret_cast<const std::byte*>(UINTPTR_MAX));
            if (const std::string why = mismatch(e, r); !why.empty()) {
                fail("wrong facts: " + why + ", in: " + words(r));
            }
            dead_damage_.erase(found);
            dead->second.damaged = k_.is != family::temp;  // that one repairs what it found
            const auto waiting = quarantine_.begin() + static_cast<std::ptrdiff_t>(quarantine_head_);
            if (const auto w = std::find(waiting, quarantine_.end(), r.block.address); w != quarantine_.end()) {
                quarantine_.erase(w);
            }
            return;
        }
    }
    if (accept(r)) {
        return;
    }
    std::string closest;
    for (std::size_t i = 0; i < expected_.size(); ++i) {
        const std::string why = mismatch(expected_[i], r);
        if (why.empty()) {
            expected_.erase(expected_.begin() + static_cast<std::ptrdiff_t>(i));
            return;
        }
        const bool same_kind =
            std::find(expected_[i].kinds.begin(), expected_[i].kinds.end(), r.kind) != expected_[i].kinds.end();
        closest = closest.empty() || same_kind ? why : closest;
    }
    if (closest.empty()) {
        fail("false report: " + words(r));
    }
    fail("wrong facts: " + closest + ", in: " + words(r));
}

void checked_session::settle() {
    if (stub_ != nullptr && stub_->denials() != denials_seen_) {
        denials_seen_ = stub_->denials();
        const auto answer = stub_->last_denial();
        // These two give freed memory back to an upstream that refuses, and ask again.
        reused_ = reused_ || k_.is == family::end_of_page || k_.is == family::canary ||
                  subject_.stats().recycled_units != 0 || subject_.stats().reused_slots != 0;
        if ((reports() || k_.is == family::general_purpose) && answer != fuzz_upstream::answer::refusal) {
            expectation e = about(answer == fuzz_upstream::answer::null         ? error_kind::upstream_null
                                  : answer == fuzz_upstream::answer::misaligned ? error_kind::upstream_misaligned
                                                                                : error_kind::upstream_overlap);
            expect(std::move(e));
        }
    }
    if (sink_.count() == 0 && expected_.empty()) [[likely]] {
        return;
    }
    if (sink_.count() > report_sink::room) {
        fail("a flood of reports, the first of which is: " + words(sink_[0]));
    }
    for (std::size_t i = 0; i < sink_.count(); ++i) {
        consume(sink_[i]);
    }
    if (!expected_.empty()) {
        fail("missing report: " + words(expected_.front()));
    }
    sink_.clear();
}

// ---- counters -------------------------------------------------------------------------------------------------------

void checked_session::compare_counts() {
    const pmr_debug::error_counts counts = subject_.errors();
    for (std::size_t i = 0; i < pmr_debug::error_kind_count; ++i) {
        const auto kind = static_cast<error_kind>(i);
        if (counts[kind] != seen_[kind]) {
            fail("errors() counts " + std::to_string(counts[kind]) + " of " + std::string(to_string(kind)) +
                 ", reported were " + std::to_string(seen_[kind]));
        }
    }
    if (subject_.ok() != (counts.total() == 0)) {
        fail("ok() contradicts errors()");
    }
}

void checked_session::compare_statistics() {
    note("compare the statistics");
    const pmr_debug::statistics s = subject_.stats();
    const auto same = [&](const char* what, std::uint64_t found, std::uint64_t expected) {
        if (found != expected) {
            fail("the statistics say " + std::to_string(found) + " " + what + ", but it is " +
                 std::to_string(expected));
        }
    };
    same("live blocks", s.live_blocks, blocks_.size());
    same("live bytes", s.live_bytes, live_bytes_);
    same("allocations", s.total_allocations, allocations_);
    same("deallocations", s.total_deallocations, frees_);
    same("bytes in all", s.total_bytes, total_bytes_);
    same("failed allocations", s.failed_allocations, refusals_);
    const bool sampled = k_.is == family::general_purpose && k_.limit_bytes == 0 && k_.limit_blocks == 0;
    if (foreign_used_) {
        // The general-purpose resource counts by thread; what a foreign one frees is not subtracted from the peak.
    } else if (!sampled) {
        same("bytes at the peak", s.peak_bytes, peak_bytes_);
        same("blocks at the peak", s.peak_blocks, peak_blocks_);
    } else if (s.peak_bytes < live_bytes_ || s.peak_bytes > peak_bytes_ || s.peak_blocks > peak_blocks_) {
        fail("the statistics say " + std::to_string(s.peak_bytes) + " bytes and " + std::to_string(s.peak_blocks) +
             " blocks at the peak, which was " + std::to_string(peak_bytes_) + " and " + std::to_string(peak_blocks_));
    }
    if (stub_ != nullptr && k_.direct) {
        const std::uint64_t held =
            k_.is == family::tracking || k_.is == family::pass_through ? live_bytes_ : stub_->live_bytes();
        same("bytes of the upstream", s.upstream_bytes, held);
    }
}

// ---- the end --------------------------------------------------------------------------------------------------------

void checked_session::drop_other() {
    if (other_.has_value()) {
        other_->deallocate(other_block_, 40, 8);
        other_.reset();
    }
}

void checked_session::finish(fuzz_input& in) {
    thread_ = 0;
    const std::size_t leaked = in.byte() % 4 == 3 ? in.byte() % 8 : 0;
    expect_all_contents();
    while (blocks_.size() > leaked) {
        free_block(blocks_.size() - 1);
    }
    compare_statistics();
    compare_counts();
    note("end of the resource");
    drop_other();
    if (reports() && k_.is != family::pass_through) {
        for (const fuzz_block& b : blocks_) {
            expect_live_damage(b, false);
        }
        expect_live(error_kind::leak, blocks_.size(), live_bytes_);
    }
    subject_.destroy();
    settle();
    if (!dead_damage_.empty()) {
        fail("missing report: write_after_free of the block at " +
             std::to_string(reinterpret_cast<std::uintptr_t>(dead_damage_.begin()->first)) +
             ", at the latest at the end");
    }
    if (stub_ != nullptr && k_.direct) {
        const bool leaves_leaks = k_.is == family::tracking || k_.is == family::canary || k_.is == family::pass_through;
        const std::size_t left = stub_->abandon();
        if (left != (leaves_leaks ? blocks_.size() : 0)) {
            fail(std::to_string(left) + " blocks were left with the upstream");
        }
    }
}

}  // namespace fuzz
