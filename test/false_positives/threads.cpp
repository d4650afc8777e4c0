// Threads that come and go, and hand each other what they allocated.

#include "programs.hpp"

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace false_positives {

namespace {

/// Jobs allocated by one thread and freed by another.
class pool {
public:
    explicit pool(unsigned threads) {
        for (unsigned i = 0; i < threads; ++i) {
            threads_.emplace_back([this] { work(); });
        }
    }
    ~pool() {
        {
            const std::scoped_lock hold(lock_);
            closed_ = true;
        }
        wake_.notify_all();
        for (std::thread& t : threads_) {
            t.join();
        }
    }
    void add(std::function<void()> job) {
        {
            const std::scoped_lock hold(lock_);
            jobs_.push_back(std::move(job));
        }
        wake_.notify_one();
    }

private:
    void work() {
        for (;;) {
            std::function<void()> job;
            {
                std::unique_lock hold(lock_);
                wake_.wait(hold, [this] { return closed_ || !jobs_.empty(); });
                if (jobs_.empty()) {
                    return;
                }
                job = std::move(jobs_.front());
                jobs_.pop_front();
            }
            job();
        }
    }

    std::mutex lock_;
    std::condition_variable wake_;
    std::pmr::deque<std::function<void()>> jobs_;
    std::vector<std::thread> threads_;
    bool closed_ = false;
};

struct per_thread {
    std::pmr::vector<std::pmr::string> words;
};
thread_local per_thread mine;  // destroyed when its thread ends

}  // namespace

void threads() {
    std::atomic<std::size_t> letters = 0;
    for (int round = 0; round < 2; ++round) {
        std::mutex lock;
        std::pmr::map<int, std::pmr::vector<std::pmr::string>> results;
        {
            pool workers(4);
            for (int i = 0; i < 70; ++i) {
                auto input = std::make_shared<std::pmr::vector<int>>(static_cast<std::size_t>(i + 1), i);
                workers.add([&, i, input] {
                    std::pmr::vector<std::pmr::string> made;
                    for (const int n : *input) {
                        made.emplace_back("a result that is long enough " + std::to_string(n));
                    }
                    letters += made.back().size();
                    mine.words = made;
                    const std::scoped_lock hold(lock);
                    results[i % 50] = std::move(made);
                });
            }
        }
        expect(results.size() == 50, "threads: results");
        std::vector<std::future<std::size_t>> futures;
        for (int i = 0; i < 8; ++i) {
            futures.push_back(std::async(std::launch::async, [&results, i] {
                std::size_t sum = 0;
                for (const std::pmr::string& s : results[i]) {
                    sum += std::pmr::string(s + " and more").size();
                }
                return sum;
            }));
        }
        std::promise<std::string> promise;
        std::thread giver([&] { promise.set_value(std::string(200, 'g')); });
        expect(promise.get_future().get().size() == 200, "threads: promise");
        giver.join();
        for (auto& f : futures) {
            expect(f.get() > 0, "threads: futures");
        }
    }
    expect(letters > 0, "threads: letters");
}

}  // namespace false_positives
