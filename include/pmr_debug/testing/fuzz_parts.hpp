#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// What the fuzzing harness is made of: decisions, the record of a program, a second thread, an upstream that keeps
/// accounts. See `fuzz.hpp`, which most need instead.

#include <pmr_debug/detail/exceptions.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory_resource>
#include <new>
#include <semaphore>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace pmr_debug::testing {

// ---- decisions ------------------------------------------------------------------------------------------------------

/// Bytes as decisions. Once they are used up, each decision is zero.
class fuzz_input {
public:
    fuzz_input(const std::uint8_t* data, std::size_t size) noexcept : next_(data), left_(size) {}

    [[nodiscard]] bool empty() const noexcept { return left_ == 0; }
    std::uint8_t byte() noexcept {
        if (left_ == 0) {
            return 0;
        }
        --left_;
        return *next_++;
    }
    /// Returns: a number in [0, n), or 0 if n is 0. Takes one byte, for n above 256 two.
    std::size_t below(std::size_t n) noexcept {
        std::size_t v = byte();
        if (n > 256) {
            v = v << 8U | byte();
        }
        return n != 0 ? v % n : 0;
    }
    /// Returns: true once in \p n.
    bool one_in(std::size_t n) noexcept { return below(n) == n - 1; }
    /// Returns: a size up to \p largest: mostly small, often next to a power of two.
    std::size_t block_size(std::size_t largest) noexcept {
        const std::size_t b = byte();
        std::size_t size = b;
        if (b >= 224) {  // next to a power of two: one less, the same, one more, a guard's length less
            const std::size_t how = byte();
            const std::size_t power = std::size_t{1} << (how / 8 % 22);
            const std::size_t offsets[] = {power - 1,  power,      power + 1, power - 16,
                                           power - 15, power - 17, power + 8, 0};
            size = offsets[how % 8];
        } else if (b >= 192) {
            size = std::size_t{byte()} << (b % 8);
        } else if (b >= 128) {
            size = b % 64;
        }
        return size > largest ? size % (largest + 1) : size;
    }
    /// Returns: a power of two up to \p largest: mostly small.
    std::size_t alignment(std::size_t largest) noexcept {
        const std::size_t b = byte();
        const std::size_t log2 = b < 128 ? b % 5 : b < 224 ? b % 8 : b % 22;
        const std::size_t a = std::size_t{1} << log2;
        return a > largest ? std::size_t{1} << (log2 % (static_cast<std::size_t>(std::countr_zero(largest)) + 1)) : a;
    }

private:
    const std::uint8_t* next_;
    std::size_t left_;
};

// ---- the program, for people
// ------------------------------------------------------------------------------------------

/// What was done so far, to be printed with a finding. `what` must be a literal.
class fuzz_program {
public:
    struct step {
        const char* what = "";
        std::uint64_t block = 0;  ///< number of the block, 1-based; 0: none
        const void* p = nullptr;
        std::size_t bytes = 0;
        std::size_t alignment = 0;  ///< 0: size and alignment do not apply
        unsigned thread = 0;        ///< 0 or 1
    };

    /// \p heading: what the program runs on.
    explicit fuzz_program(std::string heading) : heading_(std::move(heading)) {}
    fuzz_program(const fuzz_program&) = delete;
    fuzz_program& operator=(const fuzz_program&) = delete;

    void set_heading(std::string heading) { heading_ = std::move(heading); }
    void note(const step& s) { steps_.push_back(s); }

    /// Effects: prints \p what, the heading and the steps to standard error, then ends the process by std::abort, which
    ///   fuzzers take for a crash. The last 100 steps; all of them if PMR_DEBUG_FUZZ_STEPS=all is in the environment.
    [[noreturn]] void fail(const std::string& what) const {
        const char* const wish = std::getenv("PMR_DEBUG_FUZZ_STEPS");
        const std::size_t most = wish != nullptr && std::strcmp(wish, "all") == 0 ? steps_.size() : 100;
        const std::size_t from = steps_.size() > most ? steps_.size() - most : 0;
        std::fprintf(stderr, "\npmr_debug fuzz: FINDING: %s\n  on %s\n  after these steps:\n", what.c_str(),
                     heading_.c_str());
        if (from != 0) {
            std::fprintf(stderr, "    … %zu before (PMR_DEBUG_FUZZ_STEPS=all shows them)\n", from);
        }
        for (std::size_t i = from; i < steps_.size(); ++i) {
            const step& s = steps_[i];
            std::fprintf(stderr, "    %5zu %s%s", i + 1, s.thread != 0 ? "[second thread] " : "", s.what);
            if (s.block != 0) {
                std::fprintf(stderr, " #%llu", static_cast<unsigned long long>(s.block));
            }
            if (s.alignment != 0) {
                std::fprintf(stderr, ": %zu bytes, alignment %zu", s.bytes, s.alignment);
            }
            if (s.p != nullptr) {
                std::fprintf(stderr, ", at %p", s.p);
            }
            std::fputc('\n', stderr);
        }
        std::fflush(stderr);
        std::abort();
    }

private:
    std::string heading_;
    std::vector<step> steps_;
};

// ---- two threads that take turns ------------------------------------------------------------------------------------

/// A second thread that does what it is handed while the first one waits: other thread numbers, and yet every run of a
/// program is the same.
class fuzz_second_thread {
public:
    fuzz_second_thread() : thread_([this] { serve(); }) {}
    fuzz_second_thread(const fuzz_second_thread&) = delete;
    fuzz_second_thread& operator=(const fuzz_second_thread&) = delete;
    ~fuzz_second_thread() {
        job_ = nullptr;
        there_.release();
        thread_.join();
    }
    /// Effects: calls \p f in the second thread, and waits for it. \p f must not throw.
    template <class F>
    void run(F&& f) {
        context_ = &f;
        job_ = [](void* context) { (*static_cast<std::remove_reference_t<F>*>(context))(); };
        there_.release();
        back_.acquire();
    }
    /// The one that all sessions share, made at first use.
    static fuzz_second_thread& shared() {
        static fuzz_second_thread only;
        return only;
    }

private:
    void serve() {
        for (;;) {
            there_.acquire();
            if (job_ == nullptr) {
                return;
            }
            job_(context_);
            back_.release();
        }
    }
    std::binary_semaphore there_{0};
    std::binary_semaphore back_{0};
    void (*job_)(void*) = nullptr;
    void* context_ = nullptr;
    std::thread thread_;
};

// ---- the upstream ---------------------------------------------------------------------------------------------------

/// Keeps the accounts of who sits on top, and answers wrongly when told to.
/// Thread safety: one thread at a time.
class fuzz_upstream final : public std::pmr::memory_resource {
public:
    enum class answer : std::uint8_t {
        memory,
        refusal,     ///< std::bad_alloc
        null,        ///< a null pointer
        misaligned,  ///< memory that is not aligned, for an alignment above 1
        again,       ///< memory that is in use, if there is such that fits
    };
    struct block {
        std::size_t bytes = 0;
        std::size_t alignment = 0;
        bool live = false;
        std::byte* given = nullptr;  ///< what was handed out; differs from the key for `misaligned`
    };
    /// Requests above this are refused.
    static constexpr std::size_t too_much = std::size_t{1} << 28;

    explicit fuzz_upstream(fuzz_program& program) : program_(program) {}
    fuzz_upstream(const fuzz_upstream&) = delete;
    fuzz_upstream& operator=(const fuzz_upstream&) = delete;
    ~fuzz_upstream() override {
        for (const auto& [p, b] : blocks_) {
            if (b.live) {
                fail("never gave back", b.bytes, b.alignment);
            }
            expect_untouched(p, b);
            ::operator delete (p, std::align_val_t{b.alignment});
        }
    }

    /// Effects: the call after \p calls more ones gets \p a.
    void plan(std::size_t calls, answer a) noexcept {
        until_ = calls;
        planned_ = a;
    }
    /// Effects: `again` gives only memory for which \p suits(first byte, bytes): what the resource is sure to know of.
    void lend_only(std::function<bool(const std::byte*, std::size_t)> suits) { suits_ = std::move(suits); }
    /// Effects: memory that came back is kept to the end, and must not be written to. Else it may be handed out again.
    void keep_all(bool keep) noexcept { keep_ = keep; }

    /// Calls that were answered with anything but memory so far.
    [[nodiscard]] std::uint64_t denials() const noexcept { return denials_; }
    /// The last answer that was no memory, and what was handed out with it.
    [[nodiscard]] answer last_denial() const noexcept { return last_denial_; }
    [[nodiscard]] const void* last_given() const noexcept { return last_given_; }
    [[nodiscard]] std::size_t live_blocks() const noexcept { return live_; }
    [[nodiscard]] std::size_t live_bytes() const noexcept { return live_bytes_; }

    /// Effects: takes back what is still live, as nobody will: blocks of a resource that leaves leaks to its upstream.
    /// Returns: how many.
    std::size_t abandon() {
        const std::size_t n = live_;
        for (auto& [p, b] : blocks_) {
            if (b.live) {
                b.live = false;
                std::memset(p, dead, b.bytes);
            }
        }
        live_ = 0;
        live_bytes_ = 0;
        return n;
    }

private:
    static constexpr int dead = 0xEE;

    [[noreturn]] void fail(const char* what, std::size_t bytes, std::size_t alignment) const {
        program_.fail("the resource " + std::string(what) + " " + std::to_string(bytes) + " bytes with alignment " +
                      std::to_string(alignment) + " of its upstream");
    }
    void expect_untouched(const std::byte* p, const block& b) const {
        if (!std::all_of(p, p + b.bytes, [](std::byte x) { return x == static_cast<std::byte>(dead); })) {
            fail("wrote, after giving them back, to", b.bytes, b.alignment);
        }
    }
    [[nodiscard]] answer next_answer() noexcept {
        if (planned_ == answer::memory || until_-- != 0) {
            return answer::memory;
        }
        return std::exchange(planned_, answer::memory);
    }
    [[nodiscard]] std::byte* make(std::size_t bytes, std::size_t alignment) {
        auto* const p = static_cast<std::byte*>(::operator new (bytes, std::align_val_t{alignment}));
        blocks_[p] = {.bytes = bytes, .alignment = alignment, .live = true, .given = p};
        ++live_;
        live_bytes_ += bytes;
        return p;
    }

    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (!std::has_single_bit(alignment)) {
            fail("asked for", bytes, alignment);
        }
        answer a = next_answer();
        if (bytes > too_much || alignment > too_much) {
            a = answer::refusal;
        }
        if (a == answer::misaligned && (alignment == 1 || alignment > 64)) {
            a = answer::refusal;
        }
        if (a == answer::memory) {
            return make(bytes, alignment);
        }
        last_given_ = nullptr;
        if (a == answer::misaligned) {
            std::byte* const p = make(bytes + alignment, alignment);
            block& b = blocks_[p];
            b.given = p + alignment / 2;
            last_given_ = b.given;
        } else if (a == answer::again) {
            for (const auto& [p, b] : blocks_) {
                if (b.live && b.bytes == bytes && b.alignment == alignment && (!suits_ || suits_(p, bytes))) {
                    last_given_ = p;
                }
            }
            a = last_given_ != nullptr ? a : answer::refusal;
        }
        ++denials_;
        last_denial_ = a;
        if (a == answer::refusal) {
            pmr_debug::detail::throw_bad_alloc();
        }
        return const_cast<void*>(last_given_);
    }

    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        auto found = blocks_.find(static_cast<std::byte*>(p));
        for (auto i = blocks_.begin(); found == blocks_.end() && i != blocks_.end(); ++i) {
            found = i->second.given == p ? i : found;
        }
        if (found == blocks_.end() || !found->second.live) {
            fail("gave back, as it thinks,", bytes, alignment);
        }
        block& b = found->second;
        const std::size_t asked = b.given == found->first ? b.bytes : b.bytes - b.alignment;
        if (asked != bytes || b.alignment != alignment) {
            program_.fail("the resource asked its upstream for " + std::to_string(asked) + " bytes with alignment " +
                          std::to_string(b.alignment) + " and gave them back as " + std::to_string(bytes) +
                          " with alignment " + std::to_string(alignment));
        }
        std::memset(found->first, dead, b.bytes);
        b.live = false;
        b.given = found->first;
        --live_;
        live_bytes_ -= b.bytes;
        kept_bytes_ += b.bytes;
        if (!keep_ || kept_bytes_ > most_kept) {
            kept_bytes_ -= b.bytes;
            ::operator delete (found->first, std::align_val_t{b.alignment});
            blocks_.erase(found);
        }
    }

    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    static constexpr std::size_t most_kept = std::size_t{1} << 24;

    fuzz_program& program_;
    std::map<std::byte*, block> blocks_;
    std::size_t live_ = 0;
    std::size_t live_bytes_ = 0;
    std::size_t kept_bytes_ = 0;
    std::size_t until_ = 0;
    answer planned_ = answer::memory;
    answer last_denial_ = answer::memory;
    const void* last_given_ = nullptr;
    std::uint64_t denials_ = 0;
    bool keep_ = false;
    std::function<bool(const std::byte*, std::size_t)> suits_;
};

}  // namespace pmr_debug::testing

#endif  // PMR_DEBUG_LANGUAGE
