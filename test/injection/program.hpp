#pragma once

// A fixed program on a resource, whose memory may fail at any point. It keeps a model: what it holds, and the contents
// of each block.

#include <pmr_debug/statistics.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory_resource>
#include <new>
#include <string>
#include <vector>

namespace injection {

/// What a run found wrong; empty: nothing.
struct findings {
    std::string text;
    std::uint64_t refused = 0;        ///< allocations that ended in bad_alloc
    std::uint64_t done = 0;           ///< allocations that did not
    bool foreign_exceptions = false;  ///< one that is no bad_alloc is a refusal, too

    void add(const std::string& line) {
        if (text.size() < 2000) {
            text += line + "\n";
        }
    }
};

class program {
public:
    /// \p stats: of the resource, if its live counters are kept.
    program(std::pmr::memory_resource& resource, findings& out, std::function<pmr_debug::statistics()> stats = {})
        : resource_(resource), out_(out), stats_(std::move(stats)) {}
    program(const program&) = delete;
    program& operator=(const program&) = delete;
    ~program() { free_all(); }

    /// Effects: asks for a block, and fills it. A refusal must leave the counters as they were.
    bool allocate(std::size_t bytes, std::size_t alignment) {
        block b{nullptr, bytes, alignment, static_cast<unsigned char>(++last_ * 37 | 1)};
        try {
            b.p = static_cast<unsigned char*>(resource_.allocate(bytes, alignment));
        } catch (const std::bad_alloc&) {
            out_.refused += 1;
            verify_counts("a refused allocation");
            return false;
        } catch (...) {
            out_.refused += 1;
            if (!out_.foreign_exceptions) {
                out_.add("an exception that is no bad_alloc");
            }
            verify_counts("a refused allocation");
            return false;
        }
        out_.done += 1;
        if (b.p == nullptr || (reinterpret_cast<std::uintptr_t>(b.p) & (alignment - 1)) != 0) {
            out_.add("null or misaligned");
            return false;
        }
        std::memset(b.p, b.value, bytes);
        held_.push_back(b);
        return true;
    }

    /// Effects: verifies the block's contents, and frees it.
    void free(std::size_t index) {
        const block b = held_[index];
        held_[index] = held_.back();
        held_.pop_back();
        verify(b);
        resource_.deallocate(b.p, b.bytes, b.alignment);
    }

    void free_all() {
        while (!held_.empty()) {
            free(held_.size() - 1);
        }
    }

    /// Effects: verifies the contents of all blocks, and the counters.
    void verify_all(const char* when) {
        for (const block& b : held_) {
            verify(b);
        }
        verify_counts(when);
    }

    void verify_counts(const char* when) {
        if (!stats_) {
            return;
        }
        std::size_t bytes = 0;
        for (const block& b : held_) {
            bytes += b.bytes;
        }
        const pmr_debug::statistics s = stats_();
        if (s.live_blocks != held_.size() || s.live_bytes != bytes) {
            out_.add(std::string("counts after ") + when + ": " + std::to_string(s.live_blocks) + " blocks, " +
                     std::to_string(s.live_bytes) + " bytes; held are " + std::to_string(held_.size()) + ", " +
                     std::to_string(bytes));
        }
    }

    /// Effects: forgets the blocks, which are gone.
    void forget() { held_.clear(); }

    [[nodiscard]] std::size_t held() const { return held_.size(); }

    /// Effects: the program: mixed calls, whole units that die, large blocks. Everything is freed at the end.
    /// \p few: fewer, for resources that make many system calls.
    void run(bool few) {
        mixed(few ? 60 : 200);
        for (int round = 0; round < (few ? 1 : 2); ++round) {
            const std::size_t count = few ? 24 : 320;
            for (std::size_t i = 0; i < count; ++i) {
                allocate(few ? 6000 : 1000, 8);
            }
            verify_all("a run of equal blocks");
            free_all();
        }
        for (int i = 0; i < 4; ++i) {
            allocate(300'000 + static_cast<std::size_t>(i) * 5000, i == 3 ? 65536 : 16);
        }
        verify_all("large blocks");
        free_all();
        mixed(few ? 30 : 100);
        verify_all("the end");
        free_all();
        verify_counts("the last free");
    }

private:
    struct block {
        unsigned char* p;
        std::size_t bytes;
        std::size_t alignment;
        unsigned char value;
    };

    void mixed(int steps) {
        constexpr std::size_t sizes[] = {0, 1, 24, 100, 500, 1900, 5000, 20'000, 70'000};
        constexpr std::size_t alignments[] = {1, 8, 16, 64, 4096, 16'384};
        for (int i = 0; i < steps; ++i) {
            const std::uint64_t r = next();
            if (held_.size() > 40 || (r % 3 == 0 && !held_.empty())) {
                free(static_cast<std::size_t>(r / 3) % held_.size());
            } else {
                allocate(sizes[(r / 16) % 9], alignments[(r / 256) % 64 < 58 ? (r / 256) % 3 : (r / 256) % 6]);
            }
        }
    }

    void verify(const block& b) {
        if (b.bytes != 0 && (b.p[0] != b.value || std::memcmp(b.p, b.p + 1, b.bytes - 1) != 0)) {
            out_.add("contents of a block of " + std::to_string(b.bytes) + " bytes are lost");
        }
    }

    std::uint64_t next() {
        random_ ^= random_ << 13;
        random_ ^= random_ >> 7;
        random_ ^= random_ << 17;
        return random_ >> 8;
    }

    std::pmr::memory_resource& resource_;
    findings& out_;
    std::function<pmr_debug::statistics()> stats_;
    std::vector<block> held_;
    std::uint64_t last_ = 0;
    std::uint64_t random_ = 0x9E3779B97F4A7C15;
};

}  // namespace injection
